"""A file that exists only as pieces of other files: llama.cpp reads a slice without one being written.

On glibc a `FILE*` from fopencookie serves the reads; elsewhere the pieces are joined in a memory file or
a temporary file. Piece bounds are checked against the real files before llama.cpp sees anything.
"""

from __future__ import annotations

import bisect
import ctypes
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType

from p2pnode.errors import BadModelFile
from p2pnode.limits import ENGINE_PIECES_MAX

COPY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FilePiece:
    """`size` bytes of a file at `offset`, `count` times at a distance of `stride` (columns of a matrix)."""

    path: str
    offset: int
    size: int
    count: int = 1
    stride: int = 0

    @property
    def total(self) -> int:
        return self.size * self.count

    @property
    def end(self) -> int:
        """First byte of the file behind this piece."""
        return self.offset + (self.count - 1) * self.stride + self.size


@dataclass(frozen=True, slots=True)
class InlinePiece:
    """Bytes given as they are: a header, or a tensor made for this slice."""

    data: bytes

    @property
    def total(self) -> int:
        return len(self.data)


Piece = FilePiece | InlinePiece


class PieceReader:
    """Random reads over joined pieces."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        if not 0 < len(pieces) <= ENGINE_PIECES_MAX:
            raise BadModelFile(f"a model of {len(pieces)} pieces, at most {ENGINE_PIECES_MAX}")
        self._pieces = [piece for piece in pieces if piece.total]
        self._ends = list(accumulate(piece.total for piece in self._pieces))
        self._files: dict[str, int] = {}
        self.size = self._ends[-1] if self._ends else 0
        try:
            for piece in self._pieces:
                if isinstance(piece, FilePiece):
                    self._open(piece)
        except BaseException:
            self.close()
            raise

    def _open(self, piece: FilePiece) -> None:
        if piece.path not in self._files:
            try:
                self._files[piece.path] = os.open(piece.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as exc:
                raise BadModelFile(f"cannot read {piece.path}: {exc.strerror}") from exc
        if min(piece.offset, piece.size, piece.count, piece.stride) < 0:
            raise BadModelFile("a model piece with negative bounds")
        if piece.end > os.fstat(self._files[piece.path]).st_size:
            raise BadModelFile(
                f"{piece.path} ends before byte {piece.end}: truncated?",
                hint="fetch the model again",
            )

    def read_into(self, position: int, target: memoryview) -> int:
        """Fill `target` from `position`; fewer bytes only at the end."""
        done = 0
        index = bisect.bisect_right(self._ends, position)
        while done < len(target) and index < len(self._pieces):
            piece = self._pieces[index]
            start = position - (self._ends[index] - piece.total)
            count = min(len(target) - done, piece.total - start)
            if isinstance(piece, InlinePiece):
                target[done : done + count] = piece.data[start : start + count]
            elif not self._read_file(piece, start, target[done : done + count]):
                break
            done += count
            position += count
            if start + count == piece.total:
                index += 1
        return done

    def _read_file(self, piece: FilePiece, start: int, target: memoryview) -> bool:
        """Fill `target` from `start` of a piece; False when the file became shorter meanwhile."""
        file, done = self._files[piece.path], 0
        while done < len(target):
            number, inside = divmod(start + done, piece.size)
            count = min(piece.size - inside, len(target) - done)
            at = piece.offset + number * piece.stride + inside
            got = os.preadv(file, [target[done : done + count]], at)
            if got <= 0:
                return False
            done += got
        return True

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])


_Read = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_Seek = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64), ctypes.c_int)


class _CookieFunctions(ctypes.Structure):
    _fields_ = (
        ("read", ctypes.c_void_p),
        ("write", ctypes.c_void_p),
        ("seek", ctypes.c_void_p),
        ("close", ctypes.c_void_p),
    )


def _libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fopencookie"):
        return None
    libc.fopencookie.restype = ctypes.c_void_p
    libc.fopencookie.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _CookieFunctions]
    libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    libc.fclose.argtypes = [ctypes.c_void_p]
    return libc


class CookieFile:
    """Context manager: a C `FILE*` over a PieceReader."""

    def __init__(self, reader: PieceReader) -> None:
        libc = _libc()
        assert libc is not None, "ask `cookies_supported` first"
        self._libc = libc
        self._reader = reader
        self._position = 0
        self._callbacks = (_Read(self._read), _Seek(self._seek))
        read, seek = (ctypes.cast(callback, ctypes.c_void_p) for callback in self._callbacks)
        self._file = libc.fopencookie(None, b"rb", _CookieFunctions(read, None, seek, None))
        if not self._file:
            raise BadModelFile(f"fopencookie failed: {os.strerror(ctypes.get_errno())}")

    def _read(self, _cookie: int | None, buffer: int, count: int) -> int:
        try:
            target = memoryview((ctypes.c_char * count).from_address(buffer)).cast("B")
            got = self._reader.read_into(self._position, target)
        except OSError:
            return -1
        self._position += got
        return got

    def _seek(self, _cookie: int | None, offset: object, whence: int) -> int:
        base = (0, self._position, self._reader.size)[whence]
        position = base + offset[0]  # type: ignore[index]  # a ctypes pointer, which the stubs cannot name here
        if position < 0:
            return -1
        self._position = offset[0] = position  # type: ignore[index]  # as above
        return 0

    def __enter__(self) -> int:
        return int(self._file)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._libc.fclose(self._file)


def cookies_supported() -> bool:
    """Whether the C library can serve a FILE* from callbacks."""
    return _libc() is not None


def joined_file(reader: PieceReader, folder: str | None = None) -> tuple[Path, int]:
    """The pieces as one real file, in memory where the system can: its path and the descriptor keeping it."""
    if hasattr(os, "memfd_create") and folder is None:
        descriptor = os.memfd_create("p2pnode-model")
        path = Path(f"/proc/self/fd/{descriptor}")
    else:
        descriptor, name = tempfile.mkstemp(suffix=".gguf", dir=folder)
        path = Path(name)
    try:
        buffer = bytearray(COPY_BYTES)
        position = 0
        while got := reader.read_into(position, memoryview(buffer)):
            os.write(descriptor, memoryview(buffer)[:got])
            position += got
        if position != reader.size:
            raise BadModelFile("the model's file became shorter while it was read")
    except BaseException:
        os.close(descriptor)
        raise
    return path, descriptor
