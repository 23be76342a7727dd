# SPDX-License-Identifier: Apache-2.0
"""An opened bundle: its members' bytes, how long they stay, and when weights are read."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from genai_bundle.bundle import Bundle, open_bundle
from genai_bundle.errors import ContainerError, GraphError, IntegrityError, UsageError
from genai_bundle.writer import Shard, write_bundle, write_folder
from vectors import containers, graphs
from vectors.containers import DOCUMENT, MEMBERS, SHARD, WITH_SHARD

CHUNK = 4 << 20


@pytest.fixture(params=["file", "folder"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write = write_bundle if request.param == "file" else write_folder
    write(tmp_path / "a.genai", DOCUMENT, WITH_SHARD)
    return tmp_path / "a.genai"


def test_what_a_bundle_shows(path: Path) -> None:
    with open_bundle(str(path)) as bundle:
        assert bundle.path == path
        assert bundle.form == ("folder" if path.is_dir() else "file")
        assert bundle.manifest.name == "negate"
        assert bundle.id.startswith("sha256:")
        assert set(bundle.members) == {"mimetype", "manifest.json", *WITH_SHARD}
        assert bundle.members[SHARD].size == 768
        assert bundle.members[SHARD].offset % 65536 == 0
        assert {name: bundle.read(name) for name in WITH_SHARD} == WITH_SHARD
        assert bundle.graph("neg.onnx").graph.node[0].op_type == "Neg"
        assert [port.dtype for port in bundle.ports("neg.onnx").inputs.values()] == ["f32"]


def test_a_signature_is_carried_along(tmp_path: Path) -> None:
    plain = write_bundle(tmp_path / "plain.genai", DOCUMENT, WITH_SHARD)
    signed = {**WITH_SHARD, "model.sig": b"statement"}
    for write in (write_bundle, write_folder):
        path = tmp_path / f"{write.__name__}.genai"
        assert write(path, DOCUMENT, signed) == plain
        with open_bundle(path) as bundle:
            bundle.verify()
            assert bundle.read("model.sig") == b"statement"
            assert "model.sig" not in bundle.manifest.files
    write_bundle(tmp_path / "large.genai", DOCUMENT, {**MEMBERS, "model.sig": bytes((1 << 20) + 1)})
    with pytest.raises(ContainerError) as caught:
        open_bundle(tmp_path / "large.genai")
    assert caught.value.rule == "C33"


def test_views_are_read_only_and_not_copied(path: Path) -> None:
    with open_bundle(path) as bundle:
        first, second = (np.frombuffer(bundle.view(SHARD), np.uint8) for _ in range(2))
        assert first.ctypes.data == second.ctypes.data
        assert bundle.view(SHARD).readonly
        with pytest.raises(TypeError):
            bundle.view(SHARD)[0] = 1


def test_views_outlive_the_bundle(path: Path) -> None:
    bundle = open_bundle(path)
    view = bundle.view(SHARD)
    array = np.frombuffer(bundle.view(SHARD), np.uint8)
    bundle.close()
    bundle.close()
    del bundle
    gc.collect()
    assert bytes(view) == array.tobytes() == WITH_SHARD[SHARD]


def test_a_closed_bundle_says_so(path: Path) -> None:
    with open_bundle(path) as bundle:
        pass
    with pytest.raises(ValueError, match="closed"):
        bundle.view(SHARD)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files by way of proc")
def test_closing_gives_the_files_back(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        open_bundle(path).close()
    (path / "mimetype" if path.is_dir() else path).write_bytes(b"broken")
    for _ in range(3):
        with pytest.raises(Exception, match="type"):
            open_bundle(path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_no_such_member(path: Path) -> None:
    with open_bundle(path) as bundle, pytest.raises(UsageError, match=r"weights/absent\.bin"):
        bundle.view("weights/absent.bin")


def damaged(path: Path, position: int) -> Path:
    """Changes one byte of the shard."""
    with open_bundle(path) as bundle:
        at = bundle.members[SHARD].offset + position
    target = path / SHARD if path.is_dir() else path
    with target.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    return path


@pytest.mark.parametrize(("position", "chunk"), [(0, "0 to 4194304"), (CHUNK, "4194304 to 4194314")])
def test_verify_names_the_damaged_chunk(tmp_path: Path, position: int, chunk: str) -> None:
    write_bundle(tmp_path / "a.genai", DOCUMENT, {**MEMBERS, SHARD: Shard(CHUNK + 10, [])})
    with open_bundle(damaged(tmp_path / "a.genai", position)) as bundle:
        with pytest.raises(IntegrityError, match=f"{SHARD}: bytes {chunk} differ") as caught:
            bundle.verify()
        assert caught.value.rule == "I2"


def test_opening_reads_no_weights(path: Path) -> None:
    """A damaged shard is found by `verify` and by nothing before."""
    with open_bundle(damaged(path, 5)) as bundle, pytest.raises(IntegrityError):
        bundle.verify()


def test_verify_tells_its_progress(path: Path) -> None:
    calls: list[tuple[int, int]] = []
    with open_bundle(path) as bundle:
        bundle.verify(lambda done, total: calls.append((done, total)))
    total = sum(map(len, WITH_SHARD.values()))
    assert calls == sorted(calls)
    assert calls[-1] == (total, total)


def opened(tmp_path: Path, files: dict[str, bytes], *, check: bool = True) -> Bundle:
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return open_bundle(tmp_path / ("bundle" if (tmp_path / "bundle").is_dir() else "bundle.genai"), check=check)


def test_without_checks_a_graph_is_still_sanitised(tmp_path: Path) -> None:
    vector = next(vector for vector in graphs.invalid() if vector.name == "graph-address")
    with opened(tmp_path, dict(vector.files), check=False) as bundle:
        with pytest.raises(GraphError) as caught:
            bundle.graph("add.onnx")
        assert caught.value.rule == "G7"


def test_without_checks_small_members_are_still_compared(tmp_path: Path) -> None:
    vector = next(vector for vector in containers.invalid() if vector.name == "changed")
    with pytest.raises(IntegrityError):
        opened(tmp_path, dict(vector.files), check=False)


def test_a_variant_may_use_what_the_default_may_not(tmp_path: Path) -> None:
    """Operators of com.microsoft in a variant need no `requires`."""
    head = 'ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]'
    variant = graphs.model("t = com.microsoft.Gelu(x)  y = Add(t, w)", head)
    default = graphs.model()
    document = graphs.DOCUMENT | {
        "graphs": {
            "add": {
                "file": "add.onnx",
                "variants": [{"name": "tuned", "when": {"backend": "onnxruntime"}, "file": "tuned.onnx"}],
            }
        }
    }
    members = {
        "add.onnx": default.SerializeToString(),
        "tuned.onnx": variant.SerializeToString(),
        graphs.SHARD: graphs.DATA,
    }
    write_folder(tmp_path / "a", document, members)
    with open_bundle(tmp_path / "a") as bundle:
        assert bundle.graph("tuned.onnx").graph.node[0].op_type == "Gelu"
