# SPDX-License-Identifier: Apache-2.0
"""From a sanitised ONNX graph to an OpenVINO model: weights in place, caches as the model's own variables.

Used by the backend, which compiles the model, and by `export --to openvino`, which writes it.
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import openvino as ov
from onnx.inliner import inline_local_functions
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation

from .base import Array, StatePort

BEAM = "beam_idx"
"""i32[batch]: which row of the held caches each row of a run goes on from, for runtimes that search with beams."""

HELD = (ov.Type.f32, ov.Type.f16)
"""What the engine holds: of integers it cannot give a state out or take it in."""

_ADDRESS = "*/_ORT_MEM_ADDR_/*"
_LASTING_IR = 4  # since then an initializer that is no input is a constant, and one that is an input is a default


@dataclass(frozen=True)
class ReadModel:
    """What was read. `views` must live as long as the model does: its constants lie in them.

    defaults: {input: value} of inputs that need not be fed. fixed: inputs whose default is a constant of the model.
    unused: inputs that no operator reads, which the engine drops.
    """

    model: ov.Model
    views: tuple[memoryview, ...]
    defaults: Mapping[str, Array]
    fixed: frozenset[str]
    unused: frozenset[str]


def read_model(core: ov.Core, data: bytes, weights: Mapping[str, memoryview]) -> ReadModel:
    """Read a graph that has passed `sanitize`. `weights` maps the locations of external data to bytes."""
    proto = onnx.load_from_string(data)
    if proto.functions:  # the engine knows no functions of a model's own
        proto = inline_local_functions(proto)
    defaults = _take_defaults(proto)
    inputs = {port.name for port in proto.graph.input}
    fixed = inputs & {tensor.name for tensor in proto.graph.initializer}
    placed = _point_at_memory(proto, weights)
    model = core.read_model(io.BytesIO(proto.SerializeToString()))
    _use_in_place(model, placed)
    found = {name for port in model.inputs for name in port.get_names()}
    return ReadModel(model, tuple(weights.values()), defaults, frozenset(fixed), frozenset(inputs - found - fixed))


def _take_defaults(proto: onnx.ModelProto) -> dict[str, Array]:
    """The values of inputs that have one. The engine takes such an input for a constant and would pass over a feed."""
    if proto.ir_version < _LASTING_IR:  # every weight is an input there
        return {}
    inputs = {port.name for port in proto.graph.input}
    own = [t for t in proto.graph.initializer if t.name in inputs and not t.external_data]
    for tensor in own:
        proto.graph.initializer.remove(tensor)
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in own}


def _point_at_memory(proto: onnx.ModelProto, weights: Mapping[str, memoryview]) -> dict[str, Array]:
    """Let external data be read from where the bundle is mapped: {tensor: u8[length] over those bytes}.

    By name of a file it would go without the copy that `_use_in_place` undoes, but only for a model that lies in the
    file's own folder or has a hard link beside it, which other file systems and read-only folders do not allow.
    """
    placed: dict[str, Array] = {}
    for tensor in proto.graph.initializer:
        if not tensor.external_data:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        start, length = int(place["offset"]), int(place["length"])
        view = weights[place["location"]][start : start + length]
        address = np.frombuffer(view, np.uint8).ctypes.data if length else 0
        # The engine takes arrays that may be written only. It does not write into constants, nor could it here.
        placed[tensor.name] = np.ctypeslib.as_array((ctypes.c_ubyte * length).from_address(address))
        del tensor.external_data[:]
        for key, value in (("location", _ADDRESS), ("offset", address), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    return placed


def _use_in_place(model: ov.Model, placed: Mapping[str, Array]) -> None:
    """Put constants over the mapping in the place of the copies that reading made.

    Of 400 MB in fp32, reading copied 382 MB in 0.4 s; after this 6 MB of private memory were left, and 350 MB when the
    matrices were packed. The copies are gone before that begins, so that they do not raise the peak.
    """
    for node in model.get_ops():
        data = placed.get(node.get_friendly_name()) if node.get_type_name() == "Constant" else None
        if data is None or not data.nbytes or node.get_byte_size() != data.nbytes:
            continue
        tensor = ov.Tensor(data, node.get_output_shape(0), node.get_element_type())
        shared = ov.op.Constant(tensor, shared_memory=True)
        shared.set_friendly_name(node.get_friendly_name())
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(shared.output(0))


@dataclass(frozen=True)
class Variable:
    """A state inside a model, by the engine's name. has_rows: it has a row for each of `beam_idx`."""

    name: str
    has_rows: bool


def make_stateful(model: ov.Model, ports: Iterable[StatePort]) -> dict[str, Variable]:
    """Turn pairs of ports into variables of the model, in place: {past port: the variable}.

    A variable begins as the runner's states do: empty where it grows, zeros elsewhere. Where rows may be several, the
    model gets the input `beam_idx`, which says how many. The Gather by it is also what lets the CPU fuse a cache into
    attention, so that no step copies it. What the engine cannot hold stays a pair of ports.
    """
    own = {port.past: port for port in ports if _can_hold(model, port)}
    if not own:
        return {}
    shapes = {past: model.input(past).get_partial_shape() for past in own}
    beam = ops.parameter([-1], np.int32, name=BEAM)
    beam.output(0).get_tensor().set_names({BEAM})
    for past, shape in shapes.items():
        readers = model.input(past).get_target_inputs() if shape[0].is_dynamic else ()
        if readers:
            gathered = ops.gather(model.input(past), beam, ops.constant(np.int64(0)))
            for reader in readers:
                reader.replace_source_output(gathered.output(0))
    if any(shape[0].is_dynamic for shape in shapes.values()):
        model.add_parameters([beam])
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, {port.past: port.present for port in own.values()})
    variables = _begin(model, own, shapes, beam)
    model.validate_nodes_and_infer_types()
    return variables


def _can_hold(model: ov.Model, port: StatePort) -> bool:
    """Both ports are there, the state is a float that the graph works out, and its first shape is known."""
    inputs = {name: one for one in model.inputs for name in one.get_names()}
    outputs = {name: one for one in model.outputs for name in one.get_names()}
    past, present = inputs.get(port.past), outputs.get(port.present)
    if past is None or present is None or past.get_element_type() not in HELD or past.get_partial_shape().rank == 0:
        return False
    if present.get_node().input_value(0).get_node().get_type_name() == "Parameter":
        return False
    grows = port.axis if port.update == "append" else None
    return grows != 0 and all(dim.is_static or axis in (0, grows) for axis, dim in enumerate(past.get_partial_shape()))


def _begin(
    model: ov.Model, ports: Mapping[str, StatePort], shapes: Mapping[str, ov.PartialShape], beam: ov.Node
) -> dict[str, Variable]:
    """Say how many rows each variable begins with; one of a fixed number needs nothing.

    A fused cache does not compile without it. And the constant 0 for the length would be taken for its length at all
    times.
    """
    rows = ops.shape_of(beam, output_type="i64")
    none = ops.subtract(rows, rows)
    variables: dict[str, Variable] = {}
    for node in [node for node in model.get_ops() if node.get_type_name() == "ReadValue"]:
        name = node.get_attributes()["variable_id"]
        past = next(past for past, port in ports.items() if name == past + port.present)
        variables[past] = Variable(name, shapes[past][0].is_dynamic)
        if not variables[past].has_rows:
            continue
        dims = [
            rows if axis == 0 else none if dim.is_dynamic else ops.constant(np.array([dim.get_length()], np.int64))
            for axis, dim in enumerate(shapes[past])
        ]
        zero = ops.constant(np.array(0), dtype=node.get_output_element_type(0))
        node.set_arguments([ops.broadcast(zero, ops.concat(dims, 0))])
    return variables
