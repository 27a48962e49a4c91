"""Fetched chunks of one model: sparse files at the original offsets, and a durable bit for each chunk."""

from __future__ import annotations

import io
import os
from pathlib import Path

from p2pnode import limits
from p2pnode.durable import sync_folder
from p2pnode.errors import BadModelFile, DataDirError
from p2pnode.models.files import data_errors, write_atomic
from p2pnode.models.header import outline, slim
from p2pnode.models.manifest import Chunk, Manifest


class ChunkCache:
    """Not safe for several threads; the store holds its lock around every call."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        count = len(manifest.files)
        names = (
            ["model.gguf"] if count == 1 else [f"model-{n + 1:05}-of-{count:05}.gguf" for n in range(count)]
        )
        self._paths = tuple(folder / name for name in names)
        self._handles: list[io.FileIO] = []
        self._header_chunks = [manifest.chunks[index] for index in manifest.header_chunks]
        self._header_set = frozenset(manifest.header_chunks)
        self._header_parts: dict[int, bytes] = {}
        self._pending_bytes = 0
        self._is_dirty = False
        self._is_checked = False
        """Whether the slim headers were written again since the start."""
        self._have = self._load()
        self.have_bytes = manifest.bytes_of(self._have)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The sparse files; made on first use, each with its slim header."""
        if not self._paths[0].exists():
            self._create()
        return self._paths

    def has(self, index: int) -> bool:
        return index in self._have

    def bits(self) -> bytes:
        """One bit a chunk, least significant first."""
        result = bytearray(-(-len(self.manifest.chunks) // 8))
        for index in self._have:
            result[index // 8] |= 1 << index % 8
        return bytes(result)

    def write(self, chunk: Chunk, data: bytes | memoryview) -> None:
        """Put a verified chunk at its place; durable after `flush`."""
        if chunk.index in self._have:
            return
        if chunk.index in self._header_set:
            self._write_header(chunk, data)
        else:
            self._put(chunk.file, chunk.offset, data)
            self._added([chunk])
        if self._pending_bytes >= limits.STORE_FLUSH_BYTES:
            self.flush()

    def _write_header(self, chunk: Chunk, data: bytes | memoryview) -> None:
        """Header pieces wait until all of a file are here, so that the file always has a header that can be read."""
        self._header_parts[chunk.index] = bytes(data)
        own = [c for c in self._header_chunks if c.file == chunk.file]
        if not all(c.index in self._header_parts for c in own):
            return
        header = b"".join(self._header_parts.pop(c.index) for c in own)
        if slim(header, outline(header)) != self.manifest.files[chunk.file].header:
            raise BadModelFile("this model's manifest shows another header than its file has")
        self._put(chunk.file, 0, header)
        self._added(own)

    def _added(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self._have.add(chunk.index)
            self.have_bytes += chunk.size
            self._pending_bytes += chunk.size
        self._is_dirty = True

    def _put(self, file: int, offset: int, data: bytes | memoryview) -> None:
        with data_errors(self._paths[file]):
            handle = self._open()[file]
            handle.seek(offset)
            view = memoryview(data)
            while view:
                view = view[handle.write(view) :]

    def forget(self, index: int) -> None:
        """A chunk turned out damaged: it is not here any more."""
        lost = [c.index for c in self._header_chunks] if index in self._header_set else [index]
        for number in self._have.intersection(lost):
            self._have.discard(number)
            self.have_bytes -= self.manifest.chunks[number].size
            self._is_dirty = True
        if index in self._header_set:
            self._restore_headers()
        self.flush()

    def flush(self) -> None:
        """Data first, then the bits: a bit never promises bytes that a power cut can take away."""
        if not self._is_dirty:
            return
        try:
            with data_errors(self.folder):
                for handle in self._handles:
                    os.fsync(handle.fileno())
            if self.folder.is_dir():
                write_atomic(self.folder / "have", self.bits())
        except DataDirError:
            # What the system could not make durable may be gone from its memory too: believe the bits on disk.
            self._have = self._load()
            self.have_bytes = self.manifest.bytes_of(self._have)
            raise
        finally:
            self.close_files()
            self._is_dirty = False
            self._pending_bytes = 0

    def close_files(self) -> None:
        """They are opened again when something is written."""
        for handle in self._handles:
            handle.close()
        self._handles.clear()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self.close_files()

    def _load(self) -> set[int]:
        path = self.folder / "have"
        if not path.is_file() or not all(p.is_file() for p in self._paths):
            return set()
        with data_errors(path):
            raw = path.read_bytes()
        if len(raw) != -(-len(self.manifest.chunks) // 8):
            return set()
        found = (8 * i + bit for i, byte in enumerate(raw) if byte for bit in range(8) if byte >> bit & 1)
        return {index for index in found if index < len(self.manifest.chunks)}

    def _create(self) -> None:
        """Files of full length, holes but for their headers; the last rename makes them count."""
        with data_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for path, file in reversed(list(zip(self._paths, self.manifest.files, strict=True))):
                temporary = path.with_suffix(".new")
                with temporary.open("wb") as handle:
                    handle.write(file.header)
                    handle.truncate(file.size)
                    handle.flush()
                    os.fsync(handle.fileno())
                temporary.replace(path)
            sync_folder(self.folder)

    def _open(self) -> list[io.FileIO]:
        if not self._handles:
            self._handles = [io.FileIO(path, "r+") for path in self.paths]
            if not self._is_checked:
                self._is_checked = True
                self._restore_headers()
        return self._handles

    def _restore_headers(self) -> None:
        """Files without all pieces of their full header get the slim one."""
        for number, file in enumerate(self.manifest.files):
            if not all(c.index in self._have for c in self._header_chunks if c.file == number):
                self._put(number, 0, file.header)
