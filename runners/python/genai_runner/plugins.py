# SPDX-License-Identifier: Apache-2.0
"""Backends of other packages, found by the entry points that these declare. Nothing of them is imported unasked.

[project.entry-points."genai_runner.backends"]
mine = "my_package:MyBackend"
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from genai_bundle.errors import UsageError

if TYPE_CHECKING:
    from .backends.base import Backend

GROUP = "genai_runner.backends"


def plugin_names(own: Collection[str]) -> list[str]:
    """The names that installed packages declare; a plugin never stands in for one of our `own`."""
    return sorted({point.name for point in entry_points(group=GROUP)} - set(own))


def load_plugin(name: str) -> Backend:
    """The backend that a package declares as `name`: an object, or a class or function that gives one.

    Raises UsageError where it cannot be imported or made, is none, calls itself otherwise, or is declared twice.
    """
    points = entry_points(group=GROUP, name=name)
    if len(points) > 1:
        raise _fail(name, f"{' and '.join(sorted(map(_package, points)))} both declare it", "Uninstall one of them")
    [point] = points
    try:
        found: Any = point.load()
        made = found() if isinstance(found, type) or not hasattr(found, "load") else found
    except Exception as error:  # whatever the code of another package raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise _fail(name, reason, f"Reinstall {_package(point)}, or ask its makers") from error
    if not callable(getattr(made, "load", None)) or getattr(made, "name", None) != name:
        raise _fail(name, f"{point.value} is no backend with that name", f"Ask the makers of {_package(point)}")
    backend: Backend = made
    return backend


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module


def _fail(name: str, reason: str, hint: str) -> UsageError:
    return UsageError(f"the plugin for backend {name!r} cannot be used: {reason}", hint=hint)
