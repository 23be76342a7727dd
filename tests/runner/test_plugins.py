# SPDX-License-Identifier: Apache-2.0
"""Backends of other packages: the one in runners/README.md, installed and run, and those that are faulty."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

import genai_runner
from conftest import ROOT, SAMPLE
from genai_bundle.errors import UsageError
from genai_runner import plugins
from genai_runner.backends.base import engine_names, find_backend
from genai_runner.backends.scripted import ScriptedBackend

README = ROOT / "runners" / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds the plugin of runners/README.md, built and installed by pip."""
    source, target = tmp_path_factory.mktemp("plain-backend"), tmp_path_factory.mktemp("site")
    [code], [project] = blocks("python"), blocks("toml")
    assert len(code.splitlines()) < 60
    (source / "plain_backend.py").write_text(code, encoding="utf-8")
    (source / "pyproject.toml").write_text(project, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", target, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def command(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *(entry for entry in sys.path if entry)])
    return subprocess.run(
        [sys.executable, "-m", "genai_bundle", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_backend_of_the_page_runs_a_bundle(installed: Path) -> None:
    prompt = ("Once upon a time", "--max-tokens", "12")
    ours = command(installed, "run", str(SAMPLE), *prompt)
    plain = command(installed, "run", str(SAMPLE), *prompt, "--backend", "plain", "--stats")
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == ours.stdout != ""
    assert "on plain, cpu, exact" in plain.stderr


def test_it_stands_among_all_backends(installed: Path) -> None:
    done = command(installed, "verify", str(SAMPLE), "--backend", "plain")
    assert done.returncode == 0, done.stderr
    assert "plain" in done.stdout
    missing = command(installed, "run", str(SAMPLE), "x", "--backend", "plane")
    assert missing.returncode == 2
    assert "plain" in missing.stderr


Declare = Callable[..., None]


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Declare:
    """Entry points of packages that are not there: name, object."""

    def declared(*points: tuple[str, str]) -> None:
        made = EntryPoints([EntryPoint(name, value, plugins.GROUP) for name, value in points])
        monkeypatch.setattr(plugins, "entry_points", lambda **wanted: made.select(**wanted))

    return declared


class Named(ScriptedBackend):
    name = "named"


OBJECT = Named()


def make() -> Named:
    return Named()


HERE = __name__


@pytest.mark.parametrize("what", ["Named", "OBJECT", "make"])
def test_a_class_an_object_or_a_function(what: str, declare: Declare) -> None:
    sys.modules.setdefault(HERE, sys.modules[__name__])
    declare(("named", f"{HERE}:{what}"))
    assert isinstance(find_backend("named"), Named)
    assert engine_names()[-1] == "named"


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (("broken", "no_such_package:BACKEND"), "'broken' cannot be used: ModuleNotFoundError"),
        (("broken", "json:nothing"), "'broken' cannot be used: AttributeError"),
        (("broken", "json:JSONDecoder"), "is no backend with that name"),
        (("broken", "genai_runner.backends.scripted:BACKEND"), "is no backend with that name"),
    ],
)
def test_a_faulty_plugin_is_one_clear_error_and_only_when_asked_for(
    point: tuple[str, str], message: str, declare: Declare
) -> None:
    declare(point)
    genai_runner.load(SAMPLE).close()
    with pytest.raises(UsageError, match=message):
        genai_runner.load(SAMPLE, "broken")


def test_a_plugin_never_replaces_a_backend_of_ours(declare: Declare) -> None:
    declare(("onnxruntime", "no_such_package:BACKEND"))
    assert engine_names().count("onnxruntime") == 1
    assert find_backend("onnxruntime").name == "onnxruntime"


def test_two_packages_with_one_name_are_refused(declare: Declare) -> None:
    declare(("twice", "json:loads"), ("twice", "math:sin"))
    with pytest.raises(UsageError, match="json and math both declare it"):
        find_backend("twice")
