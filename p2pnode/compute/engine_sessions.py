"""The sessions of a unit: which llama.cpp sequence each has, how far it goes, and how it samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2pnode.compute import kv_state
from p2pnode.compute.engine_prefixes import Prefixes
from p2pnode.compute.engine_step import Session
from p2pnode.compute.llama_context import Context
from p2pnode.compute.llama_model import Model
from p2pnode.compute.llama_sampler import Sampler
from p2pnode.compute.sampling import plan_sampler
from p2pnode.errors import Busy, ContextFull, RequestError, SessionLost, ShapeMismatch, StaleEpoch
from p2pnode.frame import Frame


class Sessions:
    """A bounded table; the first frame of an unknown session opens it."""

    def __init__(
        self,
        model: Model,
        context: Context,
        count: int,
        fingerprint: str,
        *,
        stateless: bool,
        prefix_bytes_max: int = 0,
    ) -> None:
        self._model = model
        self._context = context
        self._count = count
        self._fingerprint = fingerprint
        self._stateless = stateless
        self._sessions: dict[int, Session] = {}
        self._free = list(range(count - 1, -1, -1))
        self._prefixes = Prefixes(model, context, prefix_bytes_max)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def positions(self) -> int:
        return sum(session.length for session in self._sessions.values())

    def has(self, session_id: int) -> bool:
        return session_id in self._sessions

    def take(self, session_id: int) -> Session:
        """The session, opened if it is new; Busy when all sequences are taken."""
        session = self._sessions.get(session_id)
        if session is None:
            if not self._free:
                raise Busy(
                    f"all {self._count} sessions of this unit are taken",
                    hint="wait for one to finish, or load the unit with a larger sessions_max",
                )
            session = self._sessions[session_id] = Session(self._free.pop())
            self._context.drop(session.sequence)
        return session

    def _held(self, session_id: int) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionLost(f"session {session_id} is not here")
        return session

    def open(self, session_id: int, params: Mapping[str, Any] | None, prompt: Sequence[int]) -> None:
        """Take a sequence and set how it samples; again for new settings."""
        sampler = None
        if params is not None:
            sampler = Sampler(self._model, plan_sampler(params, self._model.vocab_tokens))
        try:
            if sampler is not None:
                sampler.accept_prompt(prompt)
            session = self.take(session_id)
        except BaseException:
            if sampler is not None:
                sampler.close()
            raise
        if session.sampler is not None:
            session.sampler.close()
        session.sampler = sampler

    def free(self, session_id: int) -> None:
        session = self._sessions.pop(session_id, None)
        if session is not None:
            if session.sampler is not None:
                session.sampler.close()
            self._context.drop(session.sequence)
            self._free.append(session.sequence)

    def close(self) -> None:
        for session_id in list(self._sessions):
            self.free(session_id)
        self._prefixes.clear()

    def forget(self, session: Session) -> None:
        """What the session holds is gone; the session stays."""
        self._context.drop(session.sequence)
        session.length = 0

    def take_back(self, session_id: int, count: int) -> None:
        """Drop the last positions of a session again."""
        session = self._sessions.get(session_id)
        if session is None or self._stateless:
            return
        session.length = max(0, session.length - count)
        self.undo(session)

    def undo(self, session: Session) -> bool:
        """Drop what a failed decode may have left; False when that lost the session.

        A recurrent memory would say that it can, and be wrong.
        """
        if not self._model.recurrent and self._context.drop_from(session.sequence, session.length):
            return True
        self.forget(session)
        return False

    def begin(self, frame: Frame, *, sample: bool) -> Session:
        """The session at the position where a frame starts: epoch, rollback, room."""
        session = self.take(frame.session)
        if frame.epoch < session.epoch:
            raise StaleEpoch(f"a frame of epoch {frame.epoch}, the session is at {session.epoch}")
        if sample and session.sampler is None and frame.wanted:
            raise RequestError("the session was not opened with sampling settings")
        session.epoch = frame.epoch
        if self._stateless:
            self.forget(session)
        else:
            self._rewind(session, frame)
        return session

    def _rewind(self, session: Session, frame: Frame) -> None:
        context, position = self._context, frame.position_first
        if position + frame.rows > context.session_tokens:
            raise ContextFull(
                f"{position + frame.rows} positions, this unit was loaded for {context.session_tokens}",
                hint="shorten the prompt, or load the model with a longer context",
            )
        if position > session.length:
            raise SessionLost(f"a frame at position {position}, the session holds {session.length}")
        if position == session.length:
            return
        if position == 0:
            context.drop(session.sequence)
        elif self._model.recurrent or not context.drop_from(session.sequence, position):
            self.forget(session)
            raise SessionLost(f"this model cannot go back to position {position}")
        session.length = position

    def copy_prefix(self, source_id: int, target_id: int, count: int) -> None:
        """Let a session start from the first `count` positions of another."""
        source = self._held(source_id)
        if not 0 <= count <= source.length:
            raise SessionLost(f"session {source_id} does not hold {count} positions here")
        if self._model.recurrent and count != source.length:
            raise SessionLost("a recurrent model can only share a whole session")
        if source_id == target_id:
            raise RequestError("a session cannot be its own prefix")
        target = self.take(target_id)
        self._context.drop(target.sequence)
        self._context.copy_prefix(source.sequence, target.sequence, count)
        target.length = count

    def keep_prefix(self, session_id: int, count: int) -> int:
        """Lay the first positions of a session aside, under its number; bytes kept in all."""
        return self._prefixes.keep(session_id, self._held(session_id), count)

    def reuse_prefix(self, session_id: int, prefix_id: int, count: int) -> None:
        """Let a session begin with the first positions of a kept prefix; what it held is gone."""
        self._prefixes.check(prefix_id, count)
        session = self.take(session_id)
        self.forget(session)
        self._prefixes.restore(prefix_id, session, count)

    def forget_prefix(self, prefix_id: int) -> None:
        self._prefixes.forget(prefix_id)

    def forget_all(self) -> None:
        """What sessions and prefixes hold: it was computed otherwise than what follows (adapters, control vectors)."""
        self._prefixes.clear()
        for session in self._sessions.values():
            self.forget(session)

    def state(self, session_id: int) -> bytearray:
        """The session's key-value state, for another engine with the same part of the same model."""
        session = self._held(session_id)
        return kv_state.pack(self._fingerprint, session.length, self._context.state(session.sequence))

    def set_state(self, session_id: int, data: bytes | bytearray | memoryview) -> int:
        """Take a state from another engine; the positions it holds."""
        positions, blob = kv_state.unpack(self._fingerprint, data)
        session = self.take(session_id)
        session.length = 0
        self._context.set_state(session.sequence, blob)
        session.length = self._context.length(session.sequence)
        if session.length != positions:
            self.forget(session)
            raise ShapeMismatch("a key-value state that does not hold the positions it names")
        return positions
