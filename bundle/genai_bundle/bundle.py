# SPDX-License-Identifier: Apache-2.0
"""A bundle, opened: its manifest, its members' bytes, and the certainty that they may be handed to a backend.

`open_bundle` trusts nothing: container, manifest, digests of everything small, pipeline, graphs, in this order, before
any engine is imported. It reads no weights, so it is quick for a bundle of any size; `Bundle.verify` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .container import Container, Form, Member, open_container
from .digest import Digester, bundle_id
from .errors import ContainerError, IntegrityError
from .layout import MAX_SIGNATURE, is_weights
from .manifest import parse_manifest
from .ports import Ports
from .prefixes import base_id, prefix_files
from .records import CHUNK_SIZE, MANIFEST_MEMBER, SIGNATURE_MEMBER, UNLISTED, FileEntry, Manifest

if TYPE_CHECKING:
    import onnx

__all__ = ["Bundle", "Member", "open_bundle"]

Progress = Callable[[int, int], None]


def open_bundle(path: str | Path, *, check: bool = True) -> Bundle:
    """Opens a bundle file or folder.

    check: also check the pipeline and every graph (rules P* and G*). Without it only container, manifest and the
    digests of small members are checked; `Bundle.graph` still hands out no graph that breaks a rule.

    Raises InvalidBundle, its `rule` naming what is broken, or UsageError where nothing can be read at `path`.
    """
    container = open_container(Path(path))
    try:
        bundle = Bundle(container, parse_manifest(bytes(container.view(MANIFEST_MEMBER))))
        bundle._check_members()
        bundle._check_small()
        if check:
            bundle._check_meaning()
    except BaseException:
        container.close()
        raise
    return bundle


class Bundle:
    """An opened bundle. Make one with `open_bundle`; use it in a `with` block or call `close`.

    manifest: the parsed manifest. id: `sha256:` and the digest of the manifest's bytes. members: every member by path,
    `mimetype` and `manifest.json` among them. form: "file" or "folder". path: as it was given.
    """

    def __init__(self, container: Container, manifest: Manifest) -> None:
        self._container = container
        self._ports: dict[str, Ports] = {}
        self.manifest = manifest
        self.id = bundle_id(bytes(container.view(MANIFEST_MEMBER)))

    @property
    def base_id(self) -> str:
        """The id that the bundle would have without its prefixes."""
        return base_id(self.manifest) if self.manifest.prefixes else self.id

    @property
    def path(self) -> Path:
        return self._container.path

    @property
    def form(self) -> Form:
        return self._container.form

    @property
    def members(self) -> Mapping[str, Member]:
        return self._container.members

    def view(self, path: str) -> memoryview:
        """A member's bytes, read-only and not copied; the view stays valid after `close`."""
        return self._container.view(path)

    def read(self, path: str) -> bytes:
        """A copy of a member's bytes."""
        return bytes(self.view(path))

    def release(self, path: str) -> None:
        """Gives a member's pages back to the system; they are read again when touched. Views stay valid."""
        self._container.advise(path, "DONTNEED")

    def graph(self, path: str) -> onnx.ModelProto:
        """A graph member, parsed and checked against the graph rules, its weights left where they are.

        Raises GraphError.
        """
        from .sanitize import sanitize

        kept = prefix_files(self.manifest)  # no weights lie there: they would be no part of the base id
        sizes = {name: member.size for name, member in self.members.items() if name not in kept}
        return sanitize(self.view(path), file=path, members=sizes, domains=self._domains(path))

    def ports(self, path: str) -> Ports:
        """The ports of a graph member; of an adapter's, the tensors that it has for ports. Raises GraphError."""
        from .adapters import values_of
        from .sanitize import ports_of

        if path not in self._ports:  # kept: checks and loading ask for them, and a graph may be megabytes to parse
            model = self.graph(path)
            self._ports[path] = values_of(model, file=path) if path in self._adapters() else ports_of(model)
        return self._ports[path]

    def verify(self, progress: Progress | None = None) -> None:
        """Compares all bytes, weights included, with the manifest's digests, in one pass.

        progress: called with (bytes done, bytes in total). Raises IntegrityError, whose `where` names the member.
        """
        entries = self.manifest.files
        done, total = 0, sum(entry.size for entry in entries.values())
        for path, entry in entries.items():
            self._container.advise(path, "SEQUENTIAL")
            digester = Digester(entry.chunks is not None)
            view = self.view(path)
            for start in range(0, entry.size, CHUNK_SIZE):
                digester.update(view[start : start + CHUNK_SIZE])
                done += len(view[start : start + CHUNK_SIZE])
                if progress is not None:
                    progress(done, total)
            self._compare(path, entry, digester)

    def close(self) -> None:
        """Gives the files back; views that are still in use keep theirs."""
        self._container.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_members(self) -> None:
        """The manifest lists every member and no others, each with its size."""
        for path, member in self.members.items():
            entry = self.manifest.files.get(path)
            if entry is None and path not in UNLISTED:
                raise ContainerError("the manifest does not list this member", where=path, rule="C29", hint="Remove it")
            if path == SIGNATURE_MEMBER and member.size > MAX_SIGNATURE:
                message = f"{member.size} bytes, at most {MAX_SIGNATURE} are allowed"
                raise ContainerError(message, where=path, rule="C33", hint="This is no signature; remove it")
            if entry is not None and entry.size != member.size:
                message = f"{member.size} bytes, where the manifest lists {entry.size}"
                raise ContainerError(message, where=path, rule="C31", hint="Fetch the bundle again")
        for path in self.manifest.files:
            if path not in self.members:
                message = "the manifest lists this member, and it is missing"
                raise ContainerError(message, where=path, rule="C30", hint="Fetch the bundle again")

    def _check_small(self) -> None:
        """Compares the digests of all members but weights."""
        for path in self.members:
            entry = self.manifest.files.get(path)
            if not is_weights(path):
                digester = Digester(chunked=False)
                digester.update(self.view(path))
                self._compare(path, entry, digester)

    def _compare(self, path: str, entry: FileEntry | None, digester: Digester) -> None:
        hint = "The bundle was damaged or changed; fetch it again"
        if entry is not None:
            for index, (found, listed) in enumerate(zip(digester.chunks, entry.chunks or (), strict=False)):
                if found != listed:
                    start = index * CHUNK_SIZE
                    stop = min(entry.size, start + CHUNK_SIZE)
                    message = f"bytes {start} to {stop} differ from the manifest's digest"
                    raise IntegrityError(message, where=path, rule="I2", hint=hint)
            if digester.sha256 != entry.sha256:
                rule = "I3" if entry.chunks is not None else "I1"
                raise IntegrityError("its bytes differ from the manifest's digest", where=path, rule=rule, hint=hint)
        crc = self._container.crcs.get(path, digester.crc)
        if crc != digester.crc:
            message = f"its header has the CRC-32 {crc:08x}, its bytes have {digester.crc:08x}"
            raise IntegrityError(message, where=path, rule="I4", hint=hint)

    def _check_meaning(self) -> None:
        """Checks the pipeline, then each graph, then what the pipeline says of the graphs' ports."""
        from . import check

        check.check_manifest(self.manifest)
        files = {graph.file for graph in self.manifest.graphs.values()}
        files |= {variant.file for graph in self.manifest.graphs.values() for variant in graph.variants}
        files |= self._adapters()
        check.check_graphs(self.manifest, {file: self.ports(file) for file in sorted(files)})

    def _adapters(self) -> set[str]:
        """The members that hold adapters' tensors."""
        return {file for adapter in self.manifest.adapters.values() for file in adapter.graphs.values()}

    def _domains(self, path: str) -> frozenset[str]:
        """The operator domains that a graph member may use: variants any known one, default graphs what is required."""
        from .sanitize import CONTRIB, STANDARD

        defaults = {graph.file for graph in self.manifest.graphs.values()}
        required = {feature.removeprefix("domain:") for feature in self.manifest.requires}
        return STANDARD | (CONTRIB if path not in defaults else CONTRIB & required)
