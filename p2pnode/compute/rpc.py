"""tensor_rpc: llama.cpp's own RPC workers, each a supervised child on loopback; the node carries their TCP over QUIC.

The server trusts whoever connects and aborts its client when it goes, so both ends live in processes that may
die, and nodes with different llama.cpp builds are kept apart by `build_id`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from p2pnode.compute.child_process import kill, start_whole, to_the_end
from p2pnode.compute.engine_process import engine_environment
from p2pnode.errors import EngineIncompatible, EngineUnavailable, RequestError
from p2pnode.limits import ENGINE_CLOSE_TIMEOUT_S, ENGINE_START_TIMEOUT_S, ENGINE_THREADS_MAX

LOOPBACK = "127.0.0.1"
_ASK_EVERY_S = 0.02


def build_id() -> str:
    """Names the llama.cpp libraries of this machine; the RPC protocol only works between equal ones."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise EngineIncompatible("llama-cpp-python is not installed", hint="run: make setup")
    digest = hashlib.sha256()
    libraries = sorted({path.resolve() for path in (Path(spec.origin).parent / "lib").glob("libggml*")})
    for path in libraries:
        digest.update(path.name.encode() + b"\0" + path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


class RpcServer:
    """One worker process; make it with `start`."""

    def __init__(
        self, process: asyncio.subprocess.Process, port: int, on_exit: Callable[[int], None] | None
    ) -> None:
        self._process = process
        self._on_exit = on_exit
        self.port = port
        self.exit_code: int | None = None
        self._watcher = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, *, threads: int, on_exit: Callable[[int], None] | None = None) -> RpcServer:
        """Start a worker on a free loopback port and wait until it listens."""
        if not 1 <= threads <= ENGINE_THREADS_MAX:
            raise RequestError(f"threads is {threads}, must be from 1 to {ENGINE_THREADS_MAX}")
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        process = await start_whole(asyncio.create_subprocess_exec(
            sys.executable, "-m", "p2pnode.compute.rpc_server", str(port), str(threads),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            env={**engine_environment(), **os.environ}, process_group=0,
        ))  # fmt: skip
        server = cls(process, port, on_exit)
        try:
            async with asyncio.timeout(ENGINE_START_TIMEOUT_S):
                await server._listening()
        except TimeoutError:
            await server.close()
            raise EngineUnavailable("a llama.cpp RPC worker did not start") from None
        except BaseException:
            await server.close()
            raise
        return server

    @property
    def endpoint(self) -> str:
        """What a coordinator on this machine connects to."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _listening(self) -> None:
        while True:
            if self.exit_code is not None:
                raise EngineUnavailable(f"a llama.cpp RPC worker ended with code {self.exit_code}")
            try:
                _, writer = await asyncio.open_connection(LOOPBACK, self.port)
            except OSError:
                await asyncio.sleep(_ASK_EVERY_S)
                continue
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return

    async def _watch(self) -> None:
        self.exit_code = await self._process.wait()
        if self._on_exit is not None:
            self._on_exit(self.exit_code)

    async def close(self) -> None:
        """Kill it: it knows no other end."""
        kill(self._process)
        await to_the_end(self._ended())

    async def _ended(self) -> None:
        async with asyncio.timeout(ENGINE_CLOSE_TIMEOUT_S):
            await asyncio.wait([self._watcher])
