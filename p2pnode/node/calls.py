"""Calls between members: one stream each, a question, progress while the work goes on, an answer or a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from p2pnode import limits
from p2pnode.errors import P2PNodeError, RemoteProtocolError
from p2pnode.node.tasks import Tasks
from p2pnode.transport import messages
from p2pnode.transport.port import Connection, Stream
from p2pnode.units import PeerId

CONTROL = "/p2pnode/control/1"

ProgressCallback = Callable[[dict[str, Any]], None]
Method = Callable[[PeerId, dict[str, Any], ProgressCallback], Awaitable[dict[str, Any]]]


async def ask(
    connection: Connection,
    method: str,
    arguments: Mapping[str, Any],
    on_progress: ProgressCallback | None,
    timeout_s: float,
) -> dict[str, Any]:
    """The other side's answer; its refusal is raised, and TimeoutError after that long a silence."""
    async with asyncio.timeout(timeout_s):
        stream = await connection.open_stream(CONTROL)
        await messages.send_message(stream, messages.Call(method=method, arguments=dict(arguments)))
    try:
        return await _answer(stream, on_progress, timeout_s)
    finally:
        stream.reset()


async def _answer(stream: Stream, on_progress: ProgressCallback | None, timeout_s: float) -> dict[str, Any]:
    while True:
        async with asyncio.timeout(timeout_s):
            message = await messages.receive_message(stream)
        if isinstance(message, messages.Progress):
            if on_progress is not None and message.data:  # empty ones only break the silence
                on_progress(message.data)
        elif isinstance(message, messages.Answer):
            return message.data
        elif isinstance(message, messages.Refused):
            raise messages.refusal_error(message)
        else:
            raise RemoteProtocolError(f"unexpected answer {type(message).__name__}")


class Calls:
    """The methods that this device answers."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._methods: dict[str, Method] = {}

    def serve(self, method: str, handler: Method) -> None:
        self._methods[method] = handler

    async def here(
        self, me: PeerId, method: str, arguments: Mapping[str, Any], on_progress: ProgressCallback | None
    ) -> dict[str, Any]:
        """What this device asks itself needs no wire."""
        return await self._methods[method](me, dict(arguments), on_progress or (lambda _: None))

    async def answer(self, stream: Stream) -> None:
        """One call of a member; its work ends when nobody waits for it any more."""
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            call = await messages.receive_message(stream)
        if not isinstance(call, messages.Call) or call.method not in self._methods:
            name = call.method if isinstance(call, messages.Call) else type(call).__name__
            refused = messages.Refused(
                code="protocol_remote", message=f"this device has no method {name[:40]!r}"
            )
            await messages.send_message(stream, refused)
            await stream.close_write()
            return
        news: asyncio.Queue[dict[str, Any]] = asyncio.Queue(limits.PROGRESS_MESSAGES_WAITING_MAX)

        def progress(data: dict[str, Any]) -> None:
            if not news.full():  # progress is a courtesy: a slow listener misses some
                news.put_nowait(data)

        work = self._tasks.spawn(f"serve {call.method}", self._outcome(call, stream.peer_id, progress))
        try:
            while not work.done():
                getter = asyncio.ensure_future(news.get())
                try:
                    await asyncio.wait(
                        (work, getter),
                        return_when=asyncio.FIRST_COMPLETED,
                        timeout=limits.CONTROL_TIMEOUT_S / 3,
                    )
                    data = getter.result() if getter.done() else {}
                finally:
                    getter.cancel()
                if not work.done():
                    await messages.send_message(stream, messages.Progress(data=data))
            await messages.send_message(stream, work.result())
            await stream.close_write()
        finally:
            work.cancel()

    async def _outcome(
        self, call: messages.Call, peer_id: PeerId, progress: ProgressCallback
    ) -> messages.Answer | messages.Refused:
        try:
            return messages.Answer(data=await self._methods[call.method](peer_id, call.arguments, progress))
        except P2PNodeError as error:
            return messages.refusal(error)
