# SPDX-License-Identifier: Apache-2.0
"""What the builder makes of a recipe, and how it refuses one that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import genai_runner
from genai_bundle.builder.recipe import build_recipe
from genai_bundle.builder.report import Report, summary
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import GenaiError, InvalidBundle, ProofError, SourceError, UsageError

DOUBLE = """\
name: double
graphs:
  double:
    onnx: |
      double (float[N] x) => (float[N] y) {
        y = Add (x, x)
      }
inputs: {x: "f32[N]"}
outputs: {y: "f32[N]"}
steps:
- {run: double, in: {x: x}, out: {y: twice}}
- emit: {y: twice}
tests:
- {in: {x: [1, 2.5]}, out: {y: [2, 5]}}
"""

Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """`build(text)` writes a recipe and builds it."""

    def make(text: str, target: str = "made.genai", **how: object) -> Path:
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        build_recipe(tmp_path / "recipe.yaml", tmp_path / target, **how)  # type: ignore[arg-type]
        return tmp_path / target

    return make


def refusal(build: Build, text: str, kind: type[GenaiError] = SourceError) -> GenaiError:
    with pytest.raises(kind) as caught:
        build(text)
    return caught.value


# -- what is made -----------------------------------------------------------------------------------------------------


def test_inline_graph(build: Build) -> None:
    with open_bundle(build(DOUBLE)) as bundle:
        assert sorted(bundle.manifest.files) == ["double.onnx"]
        model = bundle.graph("double.onnx")
        assert (model.ir_version, [(entry.domain, entry.version) for entry in model.opset_import]) == (10, [("", 23)])
        assert bundle.manifest.format == "1.0"
        assert bundle.manifest.requires == ()


def test_same_recipe_same_bytes(build: Build) -> None:
    assert build(DOUBLE, "one.genai").read_bytes() == build(DOUBLE, "other.genai").read_bytes()


def test_returns_the_id_and_takes_details(build: Build, tmp_path: Path) -> None:
    path = build(DOUBLE)
    told: list[str] = []
    details = {"name": "twice", "license": "MIT"}
    made = build_recipe(tmp_path / "recipe.yaml", path, overwrite=True, details=details, progress=told.append)
    with open_bundle(path) as bundle:
        assert bundle.id == made
        assert (bundle.manifest.name, bundle.manifest.license) == ("twice", "MIT")
    assert told


def test_an_existing_target_is_kept(build: Build) -> None:
    path = build(DOUBLE)
    before = path.read_bytes()
    with pytest.raises(UsageError):
        build(DOUBLE.replace("name: double", "name: other"))
    assert path.read_bytes() == before
    build(DOUBLE.replace("name: double", "name: other"), overwrite=True)
    assert path.read_bytes() != before


def weighty(folder: Path, *, external: bool) -> onnx.ModelProto:
    """A matrix product with weights of 4000 bytes, and a bias of 40 that stays in the graph."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 15]>'
        "g (float[1,100] x) => (float[1,10] y) { product = MatMul (x, w) y = Add (product, b) }"
    )
    weights = np.arange(1000, dtype=np.float32).reshape(100, 10) / 1000
    model.graph.initializer.extend(
        [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(np.ones(10, np.float32), "b")]
    )
    onnx.save(model, folder / "g.onnx", save_as_external_data=external, location="g.data", size_threshold=0)
    return model


WEIGHTY = """\
name: weighty
graphs: {g: models/g.onnx}
inputs: {x: "f32[1,100]"}
outputs: {y: "f32[1,10]"}
steps:
- {run: g, in: {x: x}, out: {y: product}}
- emit: {y: product}
tests:
- {in: {x: {file: x.npy}}, out: {y: {file: y.npy}}, compare: {rel: 1e-5}}
"""


@pytest.mark.parametrize("external", [False, True])
def test_weights_go_into_a_shard(build: Build, tmp_path: Path, external: bool) -> None:
    (tmp_path / "models").mkdir()
    weighty(tmp_path / "models", external=external)
    x = np.linspace(-1, 1, 100, dtype=np.float32)[None]
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x @ (np.arange(1000, dtype=np.float32).reshape(100, 10) / 1000) + 1)
    path = build(WEIGHTY)
    with open_bundle(path) as bundle:
        assert sorted(bundle.manifest.files) == ["g.onnx", "tests/x.npy", "tests/y.npy", "weights/g-00.bin"]
        assert bundle.manifest.files["weights/g-00.bin"].size == 4000
        model = bundle.graph("g.onnx")
        assert (model.ir_version, model.opset_import[0].version) == (8, 15)
        assert [bool(tensor.external_data) for tensor in model.graph.initializer] == [True, False]
    same = build(WEIGHTY, "again.genai")
    assert path.read_bytes() == same.read_bytes()


def test_embedded_and_external_weights_give_the_same_members(build: Build, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    made = []
    for external in (False, True):
        weighty(tmp_path / "models", external=external)
        text = WEIGHTY[: WEIGHTY.index("tests:")]
        with open_bundle(build(text, f"{external}.genai")) as bundle:
            made.append({path: bundle.read(path) for path in bundle.manifest.files})
    assert made[0] == made[1]


def test_what_was_read_is_recorded(build: Build, tmp_path: Path) -> None:
    """Digests as hashlib gives them, under the recipe's own names; of a whole path only the file's name is kept."""
    (tmp_path / "models").mkdir()
    (tmp_path / "other").mkdir()
    weighty(tmp_path / "models", external=True)
    weighty(tmp_path / "other", external=False)
    np.save(tmp_path / "x.npy", np.zeros((1, 100), np.float32))
    np.save(tmp_path / "y.npy", np.ones((1, 10), np.float32))
    text = WEIGHTY.replace("graphs: {g: models/g.onnx}", f"graphs: {{g: models/g.onnx, h: {tmp_path}/other/g.onnx}}")
    text = text.replace("- emit: {y: product}", "- {run: h, in: {x: x}, out: {y: more}}\n- emit: {y: product, z: more}")
    text = text.replace('outputs: {y: "f32[1,10]"}', 'outputs: {y: "f32[1,10]", z: "f32[1,10]"}')
    report = Report()
    with open_bundle(build(f"{text}source: {{repo: a/b}}\n", progress=report)) as bundle:
        source = bundle.manifest.source
        report.path = tmp_path / "recipe.yaml"
        size = summary(report, bundle)["read"]["size"]
    read = {name: tmp_path / name for name in ("recipe.yaml", "models/g.onnx", "models/g.data", "x.npy", "y.npy")}
    read["g.onnx"] = tmp_path / "other" / "g.onnx"
    assert source["repo"] == "a/b"
    assert source["files"] == {name: sha256(path.read_bytes()).hexdigest() for name, path in read.items()}
    assert size == sum(path.stat().st_size for name, path in read.items() if name != "g.onnx")


def test_old_graph_with_initializers_among_its_inputs(build: Build, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["": 7]>g (float[2] x, float[2] w) => (float[2] y) { y = Mul (x, w) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3, 4], np.float32), "w"))
    onnx.save(model, tmp_path / "g.onnx")
    text = DOUBLE[DOUBLE.index("inputs:") :].replace("[N]", "[2]").replace("out: {y: [2, 5]}", "out: {y: [3, 10]}")
    path = build("name: old\ngraphs: {double: g.onnx}\n" + text)
    with open_bundle(path) as bundle:
        assert bundle.graph("double.onnx").ir_version == 3
        assert bundle.ports("double.onnx").inputs["w"].optional


def test_variants_share_their_weights(build: Build) -> None:
    numbers = ", ".join(str(i) for i in range(400))
    graph = "g (float[400] x) => (float[400] y) <float[400] w = {NUMBERS}> { y = OP }".replace("NUMBERS", numbers)
    path = build(f"""\
name: two
graphs:
  g:
    onnx: "{graph.replace("OP", "Add (x, w)")}"
    variants:
    - {{name: ort, when: {{backend: onnxruntime}}, onnx: "{graph.replace("OP", "Add (w, x)")}"}}
inputs: {{x: "f32[400]"}}
outputs: {{y: "f32[400]"}}
steps:
- {{run: g, in: {{x: x}}, out: {{y: sum}}}}
- emit: {{y: sum}}
""")
    with open_bundle(path) as bundle:
        assert sorted(bundle.manifest.files) == ["g.onnx", "g.ort.onnx", "weights/g-00.bin"]
        assert bundle.manifest.files["weights/g-00.bin"].size == 1600
    for variant in ("portable", "ort"):
        with genai_runner.load(path, variant=variant) as pipeline:
            assert pipeline(x=np.zeros(400, np.float32)).outputs["y"].tolist() == list(range(400))


def test_contrib_domain_is_required_of_readers(build: Build) -> None:
    text = DOUBLE.replace("double (float", '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]> double (float')
    text = text.replace("Add (x, x)", "com.microsoft.BiasGelu (x, x)").replace("tests:", "x-tests:")
    with open_bundle(build(text.replace("float[N]", "float[4]").replace("[N]", "[4]"))) as bundle:
        assert bundle.manifest.requires == ("domain:com.microsoft",)


BUFFER = """
name: buffer
graphs:
  g:
    onnx: |
      <ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
      g (float[1,S,8] x, int32[1] last, int32 total, float[1,1,P,8] past_k, float[1,1,P,8] past_v)
         => (float[1,S,8] y, float[1,1,T,8] now_k, float[1,1,T,8] now_v) {
        y, now_k, now_v = com.microsoft.GroupQueryAttention <num_heads = 1, kv_num_heads = 1>
          (x, x, x, past_k, past_v, last, total)
      }
inputs: {x: "f32[1,2,8]"}
outputs: {y: "f32[1,2,8]"}
state: {kv: {graph: g, ports: {past_k: now_k, past_v: now_v}, update: shared, axis: 2, capacity: 8, tokens: x}}
steps:
- run: g
  in: {x: x, last: kv.last, total: kv.total}
  out: {y: seen}
- emit: {y: seen}
tests:
- in: {x: [[[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]]}
  out: {y: [[[1, 0, 0, 0, 0, 0, 0, 0], [0.5, 0, 0, 0, 0, 0, 0, 0]]]}
  compare: {abs: 1.0e-6}
"""


def test_a_graph_for_one_engine_gets_a_portable_form(build: Build) -> None:
    """Where the recipe has tests, and does not ask for the engine's domain."""
    path = build(BUFFER)
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
        [variant] = manifest.graphs["g"].variants
        assert (manifest.requires, variant.name, dict(variant.when)) == ((), "ort", {"backend": "onnxruntime"})
        assert manifest.state["kv"].update == "append"
        assert manifest.state["kv"].override(variant.state["kv"]).update == "shared"
    for backend, form in (("onnxruntime", "auto"), ("onnxruntime", "portable"), ("reference", "auto")):
        with genai_runner.load(path, backend, variant=form) as pipeline:
            found = pipeline(x=np.eye(8, dtype=np.float32)[None, :2]).outputs["y"]
            assert found[0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_what_a_recipe_requires_stays(build: Build) -> None:
    with open_bundle(build(BUFFER + 'requires: ["domain:com.microsoft"]\n')) as bundle:
        assert bundle.manifest.graphs["g"].variants == ()
        assert bundle.manifest.state["kv"].update == "shared"


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_failing_test_writes_nothing(build: Build, tmp_path: Path) -> None:
    error = refusal(build, DOUBLE.replace("[2, 5]", "[2, 6]"), ProofError)
    assert "output 'y'" in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("old", "new", "where", "says"),
    [
        ("tests:", "name: again\ntests:", "recipe.yaml:13", "'name' stands here twice"),
        ("name: double", "name: [", "recipe.yaml:3", "is not YAML"),
        ("name: double", "name: !!python/name:os.system x", "recipe.yaml:1", "tag"),
        ("name: double", "nom: double", "recipe.yaml:1", "'name' is a required property"),
        ("name: double", "name: double\nflavour: sweet", "recipe.yaml:2: flavour", "Known here: name"),
        ('x: "f32[N]"', 'x: "f33[N]"', "recipe.yaml:8: inputs.x", "'f33[N]' is not of a form such as"),
        ('x: "f32[N]"', 'x: "f32[N] = [1,"', "recipe.yaml:8: inputs.x", "is not JSON"),
        ("- emit: {y: twice}", "- emit: {y: twice}\n  max: 3", "recipe.yaml:12: steps[1]", "steps"),
        ("onnx: |", "file: a.onnx\n    x-onnx: |", "recipe.yaml:4: graphs.double.file", "there is no file a.onnx"),
        ("Add (x, x)", "Add (x, (x))", "recipe.yaml:5: graphs.double.onnx", "line 2, column"),
        ("Add (x, x)", "Twice (x, x)", "recipe.yaml:5: graphs.double.onnx", "Twice"),
        ("Add (x, x)", "Add (x, z)", "recipe.yaml:5: graphs.double.onnx", "z"),
        ("double (float[N] x)", "double (float[N] x, int64[N] n)", "recipe.yaml", "n"),
    ],
)
def test_mistakes_are_named_with_their_line(build: Build, old: str, new: str, where: str, says: str) -> None:
    assert old in DOUBLE
    error = refusal(build, DOUBLE.replace(old, new, 1), GenaiError)
    assert isinstance(error, (SourceError, InvalidBundle))
    assert (error.where or "").startswith(where), str(error)
    assert says in str(error)


def test_the_format_s_rules_are_named_with_their_line(build: Build) -> None:
    error = refusal(build, DOUBLE.replace("{run: double, in: {x: x}", "{run: double, in: {x: missing}"), InvalidBundle)
    assert (error.where or "").startswith("recipe.yaml:11: steps[0]")
    assert error.rule == "P1"


def test_yaml_12_scalars(build: Build) -> None:
    """`no` is a text and 1e-3 a number, other than in YAML 1.1."""
    text = DOUBLE.replace("tests:", "version: 2025-01-01\ntask: no\ngeneration: {top_p: 1e-3}\ntests:")
    with open_bundle(build(text)) as bundle:
        assert (bundle.manifest.version, bundle.manifest.task) == ("2025-01-01", "no")
        assert bundle.manifest.generation == {"top_p": 0.001}


def test_aliases_may_not_unfold_without_end(build: Build) -> None:
    bomb = "x-a: &a [1]\n" + "".join(
        f"x-{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghi")
    )
    assert "unfolds too far" in str(refusal(build, bomb + DOUBLE))


def test_data_outside_the_graph_s_folder(build: Build, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    weighty(tmp_path / "models", external=True)
    (tmp_path / "models" / "g.data").rename(tmp_path / "g.data")
    model = onnx.load(tmp_path / "models" / "g.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../g.data"
    (tmp_path / "models" / "g.onnx").write_bytes(model.SerializeToString())
    assert "outside the graph's folder" in str(refusal(build, WEIGHTY))


def test_two_files_of_one_name(build: Build, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "v.npy", np.ones(2, np.float32))
    text = DOUBLE.replace("x: [1, 2.5]", "x: {file: a/v.npy}").replace("y: [2, 5]", "y: {file: b/v.npy}")
    error = refusal(build, text)
    assert "tests/v.npy" in str(error)
    assert (error.where or "").startswith("recipe.yaml:14: tests[0].out.y.file")


@pytest.mark.parametrize("content", [None, "- a list", "text", ""])
def test_no_recipe_at_all(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(SourceError):
        build_recipe(tmp_path / "recipe.yaml", tmp_path / "made.genai")
