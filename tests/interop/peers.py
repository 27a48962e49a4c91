"""The other implementations as subprocesses: one JSON command a line in, one result a line out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
INSTALLED = REPOSITORY / ".interop"
LINE_BYTES_MAX = 1 << 20
ANSWER_S_MAX = 90.0


class Peer:
    """A running peer of another implementation."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.peer_id = ""
        self.addresses: list[str] = []
        self.version = ""

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), ANSWER_S_MAX)
        assert line, "the peer ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def ready(self) -> None:
        said = await self._line()
        self.peer_id, self.addresses, self.version = said["peer"], said["addresses"], said["node"]

    async def ask(self, command: str, **options: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **options}).encode() + b"\n")
        await self._process.stdin.drain()
        return await self._line()

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def started(command: Sequence[str], folder: Path) -> AsyncIterator[Peer]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=LINE_BYTES_MAX,
    )
    peer = Peer(process)
    try:
        await peer.ready()
        yield peer
    finally:
        await peer.stop()


def js_command() -> list[str]:
    folder = INSTALLED / "js"
    return ["node", "--import", str(folder / "polyfill.mjs"), str(folder / "peer.mjs")]


def py_command() -> list[str]:
    return [str(INSTALLED / "py" / "bin" / "python"), str(HERE / "py" / "peer.py")]
