# SPDX-License-Identifier: Apache-2.0
"""From pixels to what a vision tower takes, as preprocessor_config.json says: resize, crop, rescale, normalise.

Resizing is two matrix products whose weights the graph works out from the picture's size, with the result of each
rounded to 8 bits. Weights are whole numbers of 2^-22, so that all sums are exact in float64 and every engine gives the
same pixels. That is what Pillow does, which the processors of transformers call; the engines' own `Resize` differ from
it and from each other, and none rounds in between. Rows come before columns, as models have been trained; from
Pillow 13 on a picture whose height shrinks far more is taken the other way round, which changes some pixels by a few
levels of 256.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from genai_bundle.builder.handmade import graph
from genai_bundle.builder.json_file import read_object
from genai_bundle.errors import SourceError

FILES = ("preprocessor_config.json", "processor_config.json")

FILTERS = {2: "linear", 3: "cubic"}
"""Pillow's numbers of ways to resample."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Processor:
    """edge: the shorter side after resizing. size: height and width, where the proportions are not kept. Both None: it
    stays as it is. crop: the middle of that, None for all. factor, mean, std: (x * factor - mean) / std.
    """

    edge: int | None
    size: Size | None
    cubic: bool
    crop: Size | None
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    file: str


def read_processor(path: Path) -> Processor:
    """The folder's image processor.

    Raises:
        SourceError: there is none, or it does something else.
    """
    found = next((name for name in FILES if (path / name).is_file()), None)
    if found is None:
        raise SourceError(
            f"{FILES[0]} is missing", where=str(path), hint="It says how pictures are made ready; download it too"
        )
    config = read_object(path / found) or {}
    config = config.get("image_processor", config)
    if config.get("do_pad"):
        raise SourceError("do_pad is set, which cannot be built yet", where=found)
    resample = config.get("resample", 3)
    if resample not in FILTERS:
        raise SourceError(f"resample is {resample!r}, expected one of {sorted(FILTERS)}", where=found)
    edge, size = _size(config, found)
    crop = _sides(config, "crop_size", found) if config.get("do_center_crop", True) else None
    reached = size or ((edge, edge) if edge else None)
    if crop and reached and (crop[0] > reached[0] or crop[1] > reached[1]):
        raise SourceError(f"crop_size {crop} is larger than size {reached}, which cannot be built yet", where=found)
    if not crop and edge:
        raise SourceError("do_center_crop is off, so that pictures keep different sizes", where=found)
    none = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = (_three(config, "image_mean", found), _three(config, "image_std", found)) \
        if config.get("do_normalize", True) else none  # fmt: skip
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    return Processor(edge, size, FILTERS[resample] == "cubic", crop, factor, mean, std, found)


def make_preprocess(processor: Processor) -> ir.Model:
    """The graph `preprocess`: pixels u8[H,W,3] -> pixel_values f32[1,3,h,w]."""
    constants: dict[str, Any] = {
        "zero": np.int64(0), "one": np.int64(1), "two": np.int64(2), "first": np.array([0]), "rows": np.array([1]),
        "half": np.float64(2**21), "unit": np.float64(2**22), "black": np.float64(0), "white": np.float64(255),
        "factor": np.float32(processor.factor),
        "mean": np.array(processor.mean, np.float32).reshape(3, 1, 1),
        "std": np.array(processor.std, np.float32).reshape(3, 1, 1),
        "half_wide": np.float64(0.5), "none_wide": np.float64(0), "one_wide": np.float64(1), "two_wide": np.float64(2),
    }  # fmt: skip
    body = (
        "places = Shape (pixels)  height = Gather (places, zero)  width = Gather (places, one)\n"
        "planes = Transpose <perm = [2, 0, 1]> (pixels)  resized_0 = Cast <to = 11> (planes)\n"
    )
    last = "resized_0"
    if processor.edge or processor.size:
        body += _new_size(processor, constants)
        body += _weights("across", "width", "new_width", processor.cubic, constants)
        body += _weights("down", "height", "new_height", processor.cubic, constants)
        body += "turned = Transpose <perm = [1, 0]> (across)  wide = MatMul (resized_0, turned)\n" + _rounded("wide")
        body += "tall = MatMul (down, wide_whole)\n" + _rounded("tall")
        last = "tall_whole"
    if processor.crop:
        constants |= {"crop": np.array(processor.crop), "sides": np.array([1, 2])}
        body += (
            f"whole = Shape <start = 1> ({last})  spare = Sub (whole, crop)  begin = Div (spare, two)"
            f"  end = Add (begin, crop)  cropped = Slice ({last}, begin, end, sides)\n"
        )
        last = "cropped"
    body += f"floats = Cast <to = 1> ({last})  scaled = Mul (floats, factor)  centred = Sub (scaled, mean)\n"
    body += "normal = Div (centred, std)\n"
    body += "pixel_values = Unsqueeze (normal, first)"
    height, width = processor.crop or processor.size or ("h", "w")
    signature = f"preprocess (uint8[H,W,3] pixels) => (float[1,3,{height},{width}] pixel_values)"
    return graph(signature, body, constants)


def _new_size(processor: Processor, constants: dict[str, Any]) -> str:
    if processor.size:
        constants |= {"new_height": np.int64(processor.size[0]), "new_width": np.int64(processor.size[1])}
        return ""
    constants["edge"] = np.int64(processor.edge or 0)
    return (
        "short = Min (height, width)  long = Max (height, width)  product = Mul (edge, long)"
        "  longer = Div (product, short)  upright = LessOrEqual (width, height)\n"
        "new_height = Where (upright, longer, edge)  new_width = Where (upright, edge, longer)\n"
    )


def _weights(name: str, old: str, new: str, cubic: bool, constants: dict[str, Any]) -> str:
    """`name` f64[new,old]: how much of each old place a new one takes, in units of 2^-22."""
    p = name
    lines = (
        f"{p}_old = Cast <to = 11> ({old})  {p}_new = Cast <to = 11> ({new})  {p}_scale = Div ({p}_old, {p}_new)\n"
        f"{p}_stretch = Max ({p}_scale, one_wide)\n"
        f"{p}_i = Range (zero, {new}, one)  {p}_if = Cast <to = 11> ({p}_i)  {p}_ih = Add ({p}_if, half_wide)\n"
        f"{p}_centres = Mul ({p}_ih, {p}_scale)  {p}_column = Unsqueeze ({p}_centres, rows)\n"
        f"{p}_j = Range (zero, {old}, one)  {p}_jf = Cast <to = 11> ({p}_j)  {p}_jh = Add ({p}_jf, half_wide)\n"
        f"{p}_far = Sub ({p}_jh, {p}_column)  {p}_away = Div ({p}_far, {p}_stretch)  {p}_x = Abs ({p}_away)\n"
        f"{p}_near = Less ({p}_x, one_wide)\n"
    )
    if cubic:  # with a = -1/2: 1.5 x^3 - 2.5 x^2 + 1 up to 1, then -0.5 x^3 + 2.5 x^2 - 4 x + 2 up to 2
        constants |= {name: np.float64(value) for name, value in
                      {"c15": 1.5, "c25": 2.5, "c05": -0.5, "c4": 4.0}.items()}  # fmt: skip
        lines += (
            f"{p}_x2 = Mul ({p}_x, {p}_x)\n"
            f"{p}_a1 = Mul ({p}_x, c15)  {p}_a2 = Sub ({p}_a1, c25)  {p}_a3 = Mul ({p}_a2, {p}_x2)"
            f"  {p}_inner = Add ({p}_a3, one_wide)\n"
            f"{p}_b1 = Mul ({p}_x, c05)  {p}_b2 = Add ({p}_b1, c25)  {p}_b3 = Mul ({p}_b2, {p}_x)"
            f"  {p}_b4 = Sub ({p}_b3, c4)  {p}_b5 = Mul ({p}_b4, {p}_x)  {p}_b6 = Add ({p}_b5, two_wide)\n"
            f"{p}_within = Less ({p}_x, two_wide)  {p}_outer = Where ({p}_within, {p}_b6, none_wide)\n"
        )
    else:
        lines += f"{p}_inner = Sub (one_wide, {p}_x)  {p}_outer = Mul ({p}_x, none_wide)\n"
    return lines + (
        f"{p}_raw = Where ({p}_near, {p}_inner, {p}_outer)  {p}_sum = ReduceSum ({p}_raw, rows)"
        f"  {p}_part = Div ({p}_raw, {p}_sum)  {p}_units = Mul ({p}_part, unit)  {name} = Round ({p}_units)\n"
    )


def _rounded(name: str) -> str:
    return (
        f"{name}_up = Add ({name}, half)  {name}_levels = Div ({name}_up, unit)  {name}_down = Floor ({name}_levels)"
        f"  {name}_whole = Clip ({name}_down, black, white)\n"
    )


def _size(config: Mapping[str, Any], where: str) -> tuple[int | None, Size | None]:
    if not config.get("do_resize", True):
        return None, None
    size = config.get("size")
    if type(size) is int:
        return size, None
    if isinstance(size, Mapping) and type(size.get("shortest_edge")) is int and not size.get("longest_edge"):
        return size["shortest_edge"], None
    return None, _sides(config, "size", where)


def _sides(config: Mapping[str, Any], key: str, where: str) -> Size:
    size = config.get(key)
    if type(size) is int:
        return size, size
    if isinstance(size, Mapping) and type(size.get("height")) is int and type(size.get("width")) is int:
        return size["height"], size["width"]
    raise SourceError(f"{key} is {size!r}, expected shortest_edge, or height and width", where=where)


def _three(config: Mapping[str, Any], key: str, where: str) -> tuple[float, ...]:
    value = config.get(key)
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(one, int | float) for one in value):
        raise SourceError(f"{key} is {value!r}, expected three numbers", where=where)
    return tuple(map(float, value))
