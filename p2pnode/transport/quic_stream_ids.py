"""Which streams a peer opened: their numbers say who opened them, and the highest one how many."""

from __future__ import annotations


class PeerStreamIds:
    def __init__(self, *, is_client: bool) -> None:
        """`is_client` says what this side is: a server's streams have odd numbers (RFC 9000 section 2.1)."""
        self._is_client = is_client
        self._next = 1 if is_client else 0
        self.unseen: set[int] = set()

    def opens(self, stream_id: int) -> bool:
        """Whether bytes of this stream are its first; not for one of ours, a one-way stream, or one that is over."""
        is_ours = (stream_id & 1 == 0) == self._is_client
        if is_ours or stream_id & 2:
            return False
        if stream_id >= self._next:
            # Opening a stream opens all lower ones (RFC 9000 section 2.1); their data may come later.
            self.unseen.update(range(self._next, stream_id, 4))
            self._next = stream_id + 4
            return True
        if stream_id in self.unseen:
            self.unseen.discard(stream_id)
            return True
        return False
