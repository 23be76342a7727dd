# SPDX-License-Identifier: Apache-2.0
"""What `pack` and `unpack` share: a bundle's members as the sources of a writer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genai_bundle.bundle import Bundle
    from genai_bundle.writer import Shard


def checked_parts(bundle: Bundle) -> tuple[dict[str, Any], dict[str, Shard]]:
    """The manifest (without `files`) and every other member, after all digests were found right.

    A writer computes the digests anew, so a damaged bundle would come out as a sound one if this did not look first.
    """
    from genai_bundle.cli.console import progress
    from genai_bundle.records import MANIFEST_MEMBER, MIMETYPE_MEMBER

    with progress("checking digests") as report:
        bundle.verify(report)
    manifest = json.loads(bundle.manifest.raw)
    del manifest["files"]
    parts = {path: _member(bundle, path, one.size) for path, one in bundle.members.items()}
    return manifest, {path: part for path, part in parts.items() if path not in (MIMETYPE_MEMBER, MANIFEST_MEMBER)}


def _member(bundle: Bundle, path: str, size: int) -> Shard:
    from genai_bundle.writer import Shard

    return Shard(size, [(0, lambda: bundle.view(path))])
