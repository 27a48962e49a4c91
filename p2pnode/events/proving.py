"""Roots and proofs of a log, for any size that it has reached."""

from __future__ import annotations

from abc import ABC, abstractmethod

from p2pnode.errors import NotFound
from p2pnode.events import merkle
from p2pnode.units import LogSize


class Proving(ABC):
    """What every log can do that keeps its tiles."""

    @property
    @abstractmethod
    def size(self) -> LogSize: ...

    @abstractmethod
    def tile(self, level: int, index: int) -> bytes: ...

    def root(self, size: int) -> bytes:
        self._check_size(size)
        return merkle.root_at(self, size)

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        self._check_size(size)
        if not 0 <= index < size:
            raise NotFound(f"event {index} is not among the first {size}")
        return merkle.inclusion_proof(self, index, size)

    def consistency_proof(self, size_first: int, size_second: int) -> list[bytes]:
        self._check_size(size_second)
        if not 0 < size_first <= size_second:
            raise NotFound(f"there is no proof from size {size_first} to {size_second}")
        return merkle.consistency_proof(self, size_first, size_second)

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= self.size:
            raise NotFound(f"the log has {self.size} events, not {size}")
