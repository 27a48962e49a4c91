"""LoRA adapters on this disk by content id: brought from the head of a plan, and cut like the parts they change."""

from __future__ import annotations

import asyncio
import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from blake3 import blake3

from p2pnode import limits
from p2pnode.compute import control_vector
from p2pnode.compute.engine_options import ADAPTER_ID, EngineOptions
from p2pnode.compute.engine_protocol import Adapter, UnitSpec
from p2pnode.compute.gguf import ModelIndex, open_model
from p2pnode.compute.lora import cut_adapter
from p2pnode.compute.part import Part, whole
from p2pnode.errors import BadModelFile, NotFound, RemoteProtocolError
from p2pnode.models import cid
from p2pnode.models.files import data_errors, delete, write_atomic
from p2pnode.node.calls import ProgressCallback
from p2pnode.node.keyed_locks import KeyedLocks
from p2pnode.node.links import Links
from p2pnode.units import ContentId, PeerId

READ = "adapter.read"
_HASH_BYTES = 4 * 1024 * 1024


class Adapters:
    def __init__(self, folder: Path, links: Links) -> None:
        self._folder = folder
        self._links = links
        self.locks: KeyedLocks[str] = KeyedLocks()
        """While one is held, no unit is given the adapter of that content id."""
        links.serve(READ, self._read)

    # --- by a person ---------------------------------------------------------------------------------
    def add(self, path: Path, base: ModelIndex) -> str:
        """Content id of a file that is an adapter of this model, copied here. Raises: BadModelFile."""
        if not path.is_file():
            raise BadModelFile(f"there is no file {path}", hint="give the path of a LoRA adapter in GGUF")
        if path.stat().st_size > limits.ADAPTER_BYTES_MAX:
            raise BadModelFile(f"an adapter has at most {limits.ADAPTER_BYTES_MAX >> 20} MiB")
        index, _ = open_model(path)
        if control_vector.is_control_vector(index):
            control_vector.check(index, base)
        else:
            cut_adapter(index, base, whole(base))
        with self._new_file() as (file, name), path.open("rb") as source:
            hasher = blake3()
            while data := source.read(_HASH_BYTES):
                hasher.update(data)
                file.write(data)
            identity = str(cid.from_digest(hasher.digest()))
            file.flush()
            name.replace(self._path(identity))
        write_atomic(self._folder / f"{identity}.name", path.stem.encode()[:128])
        return identity

    def is_control_vector(self, identity: str) -> bool:
        return control_vector.is_control_vector(open_model(self._path(identity))[0])

    def view(self, identity: str) -> dict[str, Any]:
        """Name and size, where it is here."""
        path, name = self._path(identity), self._folder / f"{identity}.name"
        return {
            "adapter": identity,
            "name": name.read_text(errors="replace") if name.is_file() else "",
            "size_bytes": path.stat().st_size if path.is_file() else None,
        }

    def remove(self, identity: str) -> None:
        """The file and everything cut from it; units that are loaded keep what they have."""
        for path in self._folder.glob(f"{identity}*"):
            delete(path)

    # --- for units -----------------------------------------------------------------------------------
    async def fitted(
        self,
        spec: UnitSpec,
        engine: EngineOptions,
        base: ModelIndex,
        part: Part,
        *,
        model: ContentId,
        holder: PeerId | None = None,
    ) -> UnitSpec:
        """A unit with its part of the adapters. `holder` has those that are not here.

        Raises: NotFound, BadModelFile, ArchitectureUnsupported where an adapter cannot be cut like this
        """
        if not (engine.lora or engine.control) or not part.layer_count:
            return spec
        found: list[Adapter] = []
        vectors: list[Adapter] = []
        if engine.control:
            control_vector.check_part(base, part)
        for identity, scale in engine.control_vectors:
            async with self.locks.hold(identity):
                path = await self._here(identity, holder)
                rows = await asyncio.to_thread(self._rows, identity, path, base, model)
            vectors.append(Adapter(str(rows), scale))
        for identity, scale in engine.adapters:
            async with self.locks.hold(identity):
                path = await self._here(identity, holder)
                made = await asyncio.to_thread(self._cut, identity, path, base, part, model)
            if made is not None:
                found.append(Adapter(str(made), scale))
        return replace(spec, adapters=tuple(found), control_vectors=tuple(vectors))

    async def _here(self, identity: str, holder: PeerId | None) -> Path:
        path = self._path(identity)
        if not path.is_file():
            if holder is None:
                raise NotFound(
                    f"the adapter {identity} is not on this device any more",
                    hint="add it again with: p2pnode adapters add MODEL FILE",
                )
            await self._fetch(identity, holder)
        return path

    async def _fetch(self, identity: str, holder: PeerId) -> None:
        with self._new_file() as (file, name):
            hasher, offset, size = blake3(), 0, 1
            while offset < size:
                answer = await self._links.call(holder, READ, {"adapter": identity, "offset": offset})
                data, told = answer.get("data"), answer.get("size")
                if not isinstance(data, bytes) or not data or not isinstance(told, int):
                    raise RemoteProtocolError("a part of an adapter that is none")
                size = told
                offset += len(data)
                if max(offset, size) > limits.ADAPTER_BYTES_MAX:
                    raise RemoteProtocolError("an adapter larger than any may be")
                hasher.update(data)
                await asyncio.to_thread(file.write, data)
            if cid.from_digest(hasher.digest()) != identity:
                raise RemoteProtocolError("the adapter that came is not the one that was asked for")
            file.flush()
            name.replace(self._path(identity))

    def _cut(self, identity: str, path: Path, base: ModelIndex, part: Part, model: ContentId) -> Path | None:
        """A file for this part, made once; None where the adapter changes nothing there."""
        made = cut_adapter(open_model(path)[0], base, part)
        if made is None or part == whole(base):
            return path if made is not None else None
        key = hashlib.sha256(f"{model} {part!r}".encode()).hexdigest()[:24]
        target = self._folder / f"{identity}.{key}.gguf"
        if not target.is_file():
            with path.open("rb") as source, self._new_file() as (file, name):

                def read(_file: int, offset: int, size: int) -> bytes:
                    source.seek(offset)
                    return source.read(size)

                for data in made.reader(read).chunks():
                    file.write(data)
                file.flush()
                name.replace(target)
        return target

    def _rows(self, identity: str, path: Path, base: ModelIndex, model: ContentId) -> Path:
        """A control vector as the engine takes it."""
        key = hashlib.sha256(model.encode()).hexdigest()[:24]
        target = self._folder / f"{identity}.{key}.f32"
        if not target.is_file():
            with path.open("rb") as source:

                def read(offset: int, size: int) -> bytes:
                    source.seek(offset)
                    return source.read(size)

                write_atomic(target, control_vector.rows(open_model(path)[0], base, read))
        return target

    # --- for other devices ---------------------------------------------------------------------------
    async def _read(self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback) -> dict[str, Any]:
        """A part of an adapter, to any member: whoever computes with it has to have it."""
        del peer
        identity, offset = arguments.get("adapter"), arguments.get("offset")
        if not isinstance(identity, str) or not re.fullmatch(ADAPTER_ID, identity):
            raise RemoteProtocolError("an adapter is asked for by its content id")
        if type(offset) is not int or offset < 0:
            raise RemoteProtocolError("the offset is a number of bytes")
        path = self._path(identity)
        if not path.is_file():
            raise NotFound(f"the adapter {identity} is not here")

        def part() -> bytes:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(limits.ADAPTER_PART_BYTES)

        return {"data": await asyncio.to_thread(part), "size": path.stat().st_size}

    # --- files ---------------------------------------------------------------------------------------
    def _path(self, identity: str) -> Path:
        return self._folder / f"{identity}.gguf"

    @contextmanager
    def _new_file(self) -> Iterator[tuple[IO[bytes], Path]]:
        """A file that is gone again unless somebody gave it its name."""
        with data_errors(self._folder):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            file = tempfile.NamedTemporaryFile(dir=self._folder, suffix=".new", delete=False)  # noqa: SIM115 # below
            name = Path(file.name)
            try:
                with file:
                    yield file, name
            finally:
                name.unlink(missing_ok=True)
