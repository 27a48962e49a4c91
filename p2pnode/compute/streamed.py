"""Streamed mode: weights stay in the file, and only some layers of them in memory at a time.

llama.cpp maps the file; we watch it pass from layer to layer, ask the system to read the next one ahead and
let go of the one behind. As many of the first layers as the limit allows stay: least is read again.
(The idea of loading layer by layer is SLIP's; mapping keeps it exact and free of copies.)
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from p2pnode.compute.gguf import ModelIndex, open_model
from p2pnode.compute.llama_abi import tensor_name
from p2pnode.compute.watch import watch
from p2pnode.errors import OutOfMemory, RequestError

_LAYER = re.compile(r"blk\.(\d+)\.")
_MADV_WILLNEED, _MADV_DONTNEED, _MADV_PAGEOUT = 3, 4, 21
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TRIM_EVERY_S = 0.001
_INNER_PARTS = 64
"""Of a mapping all but one part at each end is let go while it fills."""
LAYERS_IN_FLIGHT = 2
"""The layer that computes and the one being read ahead."""


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes [first, end) of file number `file`."""

    file: int
    first: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.first


def layer_ranges(index: ModelIndex) -> tuple[list[list[Range]], list[Range]]:
    """Byte ranges of every layer, and of everything else; neighbours joined."""
    layers: list[list[Range]] = [[] for _ in range(index.layer_count)]
    rest: list[Range] = []
    for tensor in sorted(index.tensors.values(), key=lambda tensor: (tensor.file, tensor.offset)):
        match = _LAYER.match(tensor.name)
        number = int(match[1]) if match else -1
        target = layers[number] if 0 <= number < len(layers) else rest
        whole = Range(tensor.file, tensor.offset, tensor.offset + tensor.size)
        if target and target[-1].file == whole.file and whole.first - target[-1].end < _PAGE:
            whole = Range(whole.file, target.pop().first, whole.end)
        target.append(whole)
    return layers, rest


def layers_kept(sizes: Sequence[int], bytes_max: int) -> int:
    """How many of the first layers stay in memory for good; raises OutOfMemory when not even two fit."""
    flight = LAYERS_IN_FLIGHT * max(sizes)
    if flight > bytes_max:
        raise OutOfMemory(
            f"two layers need {flight} bytes, the limit is {bytes_max}",
            hint="raise the memory limit",
            needed_bytes=flight,
            free_bytes=bytes_max,
        )
    kept, used = 0, flight
    while kept < len(sizes) and used + sizes[kept] <= bytes_max:
        used += sizes[kept]
        kept += 1
    return kept


def mapped_at(path: Path) -> list[tuple[int, int, int]]:
    """Where this process has a file mapped: (address, end, offset in the file)."""
    real, found = str(path.resolve()), []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == real:
            first, end = (int(part, 16) for part in fields[0].split("-"))
            found.append((first, end, int(fields[2], 16)))
    return found


class LoadTrimmer:
    """While llama.cpp loads it touches the whole file; this lets the pages go again as they come.

    `mmap` with MAP_POPULATE brings all of it in one call, at some GB/s: only dropping the pages keeps up with that. It
    is done in the inner part of the mapping, which llama.cpp keeps, and until its first word about progress: later
    it gives back both ends, and an address could mean something else by the time it is named.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._filling = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._libc = _libc()

    def _run(self) -> None:
        while not self._stop.wait(_TRIM_EVERY_S):
            self.trim()

    def told(self, progress: Callable[[float], bool] | None) -> Callable[[float], bool]:
        """llama.cpp speaks of progress when everything is mapped."""

        def tell(done: float) -> bool:
            self._filling = False
            return progress is None or progress(done)

        return tell

    def trim(self) -> None:
        """Page out, not drop, once the mapping changes: nothing is lost should an address mean something else."""
        for path in self._paths:
            for first, end, _ in mapped_at(path):
                inner = (end - first) // _INNER_PARTS // _PAGE * _PAGE
                if self._filling:
                    self._libc.madvise(first + inner, end - first - 2 * inner, _MADV_DONTNEED)
                else:
                    self._libc.madvise(first, end - first, _MADV_PAGEOUT)

    def __enter__(self) -> LoadTrimmer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.trim()


class LayerStream:
    """The eval callback of a streamed model."""

    def __init__(self, model_path: str, bytes_max: int) -> None:
        if sys.platform != "linux":
            raise RequestError("streamed mode needs Linux")
        index, self.paths = open_model(Path(model_path))
        self._layers, rest = layer_ranges(index)
        self._count = len(self._layers)
        sizes = [sum(part.size for part in layer) for layer in self._layers]
        table = index.tensors["token_embd.weight"]
        output = [part for part in rest if "output.weight" in index.tensors or part.size >= table.size]
        self._output = max(output, key=lambda part: part.size)
        self._kept = layers_kept(sizes, bytes_max - self._output.size)
        self._names = {f"l_out-{number}".encode(): number for number in range(self._count)}
        self._mappings: Mapping[int, Sequence[tuple[int, int, int]]] = {}
        self._libc = _libc()
        self.callback = watch(self._names, (), self._passed)

    def loading(self) -> LoadTrimmer:
        """Context manager for the time in which llama.cpp loads; nothing to trim where files are mapped empty."""
        mapped_empty = hasattr(ctypes.CDLL(None), "p2pnode_watch")
        return LoadTrimmer([] if mapped_empty else self.paths)

    def start(self) -> None:
        """After loading: find the mappings, and let go of everything but what stays."""
        self._mappings = {number: mapped_at(path) for number, path in enumerate(self.paths)}
        for number in range(self._kept, self._count):
            self._advise(number, _MADV_DONTNEED)

    def _passed(self, tensor: int) -> bool:
        number = self._names[tensor_name(tensor)]
        if number >= self._kept:
            self._advise(number, _MADV_DONTNEED)
        following = number + LAYERS_IN_FLIGHT
        if following >= self._count:
            following -= self._count - self._kept
        if self._kept <= following < self._count:
            self._advise(following, _MADV_WILLNEED)
        return True

    def _advise(self, layer: int, advice: int) -> None:
        for part in self._layers[layer]:
            for address, end, offset in self._mappings.get(part.file, ()):
                first = max(part.first, offset)
                last = min(part.end, offset + end - address)
                begin = -(-(address + first - offset) // _PAGE) * _PAGE
                until = (address + last - offset) // _PAGE * _PAGE
                if begin < until:
                    self._libc.madvise(begin, until - begin, advice)
