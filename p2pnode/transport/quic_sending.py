"""When the datagrams of a connection leave: with a write, at the end of a loop iteration, or when a timer fires."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from aioquic.quic.connection import NetworkAddress

from p2pnode import limits
from p2pnode.transport.quic_core import QuicCore
from p2pnode.transport.quic_socket import UdpSocket


class Writer(Protocol):
    """A stream whose task waits until less is unsent."""

    stream_id: int

    def wake_writer(self) -> None: ...


class Sending:
    """Asks the QUIC machine for datagrams at the right moments and serves its timer."""

    def __init__(
        self, core: QuicCore, udp: UdpSocket, *, broke: Callable[[], None], timer_fired: Callable[[], None]
    ) -> None:
        self._core = core
        self.socket = udp
        """Where the peer was heard last; answers leave from there."""
        self._broke = broke
        """Called while the exception is handled that building a packet raised."""
        self._timer_fired = timer_fired
        """What became of it is handled before its datagrams leave."""
        self.waiting_writers: set[Writer] = set()
        self.bytes_sent = 0
        self._loop = asyncio.get_running_loop()
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._keep_alive: asyncio.TimerHandle | None = None
        self._flush_scheduled = False
        self._flush_wanted = False
        self._flushed_now = False
        self._batch_came = False
        self._ping_uid = 0
        core.send_early = self.send

    # --- datagrams ---------------------------------------------------------------------------------
    def wrote(self) -> None:
        """The first write of a loop iteration goes out at once, further ones together at its end."""
        if self._flushed_now:
            self._flush_wanted = True
            return
        self._flushed_now = True
        self._schedule()
        self.flush()

    def flush_after_batch(self) -> None:
        """As `flush_soon`, but an acknowledgement alone may wait for its timer."""
        self._batch_came = True
        self._schedule()

    def flush_soon(self) -> None:
        """After the tasks that were just woken had their turn, so that answers ride with acknowledgements."""
        self._flush_wanted = True
        self._schedule()

    def _schedule(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._end_of_iteration)

    def _end_of_iteration(self) -> None:
        self._flush_scheduled = self._flushed_now = False
        if self._flush_wanted:
            self.flush()
        elif self._batch_came and not self._is_over:
            # Nobody wrote an answer, which would have taken the acknowledgement along.
            self._batch_came = False
            self.arm_timer() if self._core.can_wait(self._loop.time()) else self.flush()

    def flush(self) -> None:
        self._flush_wanted = self._batch_came = False
        if self._is_over:
            return
        try:
            datagrams = self._core.datagrams_to_send(now=self._loop.time())
        except Exception:
            self._broke()
            return
        if datagrams:
            self.send(datagrams)
        for stream in tuple(self.waiting_writers):
            if self._core.unsent_bytes(stream.stream_id) <= limits.WRITE_UNSENT_BYTES_MAX // 4:
                stream.wake_writer()
        self.arm_timer()

    def send(self, datagrams: list[tuple[bytes, NetworkAddress]]) -> None:
        for data, _ in datagrams:
            self.bytes_sent += len(data)
        self.socket.send_batch(datagrams)

    # --- timers ------------------------------------------------------------------------------------
    def arm_timer(self) -> None:
        """Timers that would fire too early are left: firing checks again, re-arming costs more."""
        at = self._core.get_timer()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        at = self._core.get_timer()
        if self._is_over or at is None:
            return
        now = self._loop.time()
        if at > now:  # what it was armed for is done already
            self.arm_timer()
            return
        self._core.handle_timer(now=now)
        self._timer_fired()
        self.flush()

    def keep_alive(self) -> None:
        """Ping before the peer's idle timeout, from now on."""
        interval_s = min(limits.KEEP_ALIVE_S_MAX, self._core.idle_timeout_s / 3)
        self._keep_alive = self._loop.call_later(interval_s, self._on_keep_alive)

    def _on_keep_alive(self) -> None:
        if not self._is_over:
            self.nudge()
            self.keep_alive()

    def nudge(self) -> None:
        """A ping frame; the peer acknowledges it, and it is repeated until then."""
        if not self._is_over:
            self._ping_uid += 1
            self._core.send_ping(self._ping_uid)
            self.flush()

    def stop(self) -> None:
        """The connection is over: nothing leaves and no timer fires any more."""
        self._is_over = True
        for timer in (self._timer, self._keep_alive):
            if timer is not None:
                timer.cancel()
