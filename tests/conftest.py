# SPDX-License-Identifier: Apache-2.0
"""What every test may use, and the one place that decides what may be skipped.

A test marked `shared`, `torch`, `openvino` or `peers` needs something a plain checkout lacks. Without it the test is
skipped, unless the environment variable GENAI_REQUIRE names it (``GENAI_REQUIRE=shared,torch``), or, for `shared`,
CI is set: then it fails. So a continuous-integration run cannot pass by having skipped.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# `deadline` would make a slow machine fail; `nox -s fuzz` selects the second profile.
settings.register_profile("quick", deadline=None, max_examples=60)
settings.register_profile("fuzz", deadline=None, max_examples=20_000)
settings.load_profile("quick")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
"""Checkpoints, models, recordings and their golden results, beside the checkout."""

BACKENDS = ["onnxruntime", "reference", pytest.param("openvino", marks=pytest.mark.openvino)]
"""Every backend that computes, for `parametrize`."""

PEERS = ("onnxruntime_genai", "openvino_genai", "openvino_tokenizers")

EXAMPLES = ROOT / "examples"
SAMPLE = EXAMPLES / "tiny-stories.genai"


def _missing(need: str) -> str | None:
    """Why `need` cannot be met here, or None."""
    if need == "shared":
        return None if SHARED.is_dir() else f"no folder {SHARED}"
    modules = {"torch": ("torch", "transformers"), "openvino": ("openvino",), "peers": PEERS}[need]
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def required() -> set[str]:
    """The needs whose absence is a failure in this run."""
    names = {name.strip() for name in os.environ.get("GENAI_REQUIRE", "").split(",") if name.strip()}
    return names | {"shared"} if os.environ.get("CI") else names


def optional(module: str, name: str) -> Any:
    """A module of the need `name`, for the head of a test file. Without it the file is skipped, or fails."""
    if name in required():
        return importlib.import_module(module)
    return pytest.importorskip(module)


def need(name: str) -> None:
    """Skip the running test where `name` is absent, or fail it where this run requires it."""
    reason = _missing(name)
    if reason is None:
        return
    if name in required():
        pytest.fail(f"this run requires '{name}': {reason}", pytrace=False)
    pytest.skip(f"needs '{name}': {reason}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in ("shared", "torch", "openvino", "peers"):
        if item.get_closest_marker(name) is not None:
            need(name)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the runner remembers is forgotten after the run, unless GENAI_CACHE_DIR says where to keep it."""
    with pytest.MonkeyPatch.context() as patch:
        if "GENAI_CACHE_DIR" not in os.environ:
            patch.setenv("GENAI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared/data."""
    need("shared")
    return SHARED


@pytest.fixture(scope="session")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny random checkpoints of one tokenizer, `model` and `draft`, and both in `both.genai`."""
    from families import causal
    from genai_bundle.builder.build import build
    from genai_bundle.builder.options import BuildOptions

    made = tmp_path_factory.mktemp("drafted")
    small = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 259}
    causal("Llama")(made / "model")
    causal("Qwen2", num_hidden_layers=1, max_position_embeddings=64, **small)(made / "draft")
    build(made / "model", made / "both.genai", BuildOptions(draft=made / "draft"))
    return made


@pytest.fixture(scope="session")
def sample() -> Path:
    """The bundle that the project ships."""
    return SAMPLE
