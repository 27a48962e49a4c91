"""POST /shell/exec: off unless the operator started the node with --console.

Whoever may use it owns the node's account on this machine; the list below only catches slips of the hand.
It is no protection against anyone who means harm, and nothing here pretends it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct
from quart import Blueprint, Response, request

from p2pnode.api.context import ApiContext, body, caller
from p2pnode.api.envelope import json_response
from p2pnode.api.generation import new_id
from p2pnode.api.schemas import parse
from p2pnode.api.security import is_loopback
from p2pnode.compute.child_process import start_whole, to_the_end
from p2pnode.errors import Forbidden, NotFound
from p2pnode.limits import CONSOLE_OUTPUT_BYTES_MAX, CONSOLE_TIMEOUT_S_MAX

_SLIPS = re.compile(
    r"\brm\s+(-[a-z]*[rf][a-z]*\s+)+(--no-preserve-root\s+)?/(\s|$|\*)|\bmkfs(\.|\s)|\bdd\b.*\bof=/dev/|>\s*/dev/[sv]d"
    r"|:\(\)\s*\{|\bshutdown\b|\breboot\b|\bchmod\s+-R\s+0*777\s+/(\s|$)",
    re.IGNORECASE,
)


class ConsoleRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    command: Annotated[str, Meta(min_length=1, max_length=8192)]
    timeout_s: Annotated[float, Meta(gt=0, le=CONSOLE_TIMEOUT_S_MAX)] = 30.0


def console_routes(context: ApiContext) -> Blueprint:
    routes = Blueprint("console", __name__)

    @routes.post("/shell/exec")
    async def execute() -> Response:
        who = caller("admin")
        if not context.security.console:
            raise NotFound("the console is off", hint="start the node with --console to have it")
        if not (is_loopback(request.remote_addr or "") and who.explicit):
            raise Forbidden("the console wants an admin key, from this machine")
        asked = parse(ConsoleRequest, await body())
        if _SLIPS.search(asked.command):
            raise Forbidden("this command looks like a slip that would destroy the machine")
        begun = time.perf_counter()
        code, output, timed_out = await run_command(asked.command, asked.timeout_s)
        duration_ms = round((time.perf_counter() - begun) * 1000)
        await context.node.command(
            "console_ran",
            {
                "run_id": new_id("console"),
                "actor": who.account,
                "command": asked.command,
                "verb": verb_of(asked.command),
                "exit_code": code,
                "duration_ms": duration_ms,
            },
        )
        text = output[:CONSOLE_OUTPUT_BYTES_MAX].decode("utf-8", "replace")
        return json_response(
            {
                "exit_code": code,
                "output": text,
                "truncated": len(output) > CONSOLE_OUTPUT_BYTES_MAX,
                "timed_out": timed_out,
                "duration_ms": duration_ms,
            }
        )

    return routes


def verb_of(command: str) -> str:
    """The program that a command begins with, for the record; `shell` for whatever else it begins with.

    `TOKEN=secret curl …` must not leave the secret in a record that nothing can be taken out of.
    """
    word = (command.split() or [""])[0]
    return Path(word).name[:32] if shutil.which(word) else "shell"


async def run_command(command: str, timeout_s: float) -> tuple[int, bytes, bool]:
    """Exit code, output up to one byte more than is shown, and whether time ran out.

    Its whole session ends with it. The pipe is our own: asyncio's counts a process as ended only once its pipes are
    read to the end, which a command that says too much, or one that left its session, would put off for ever.
    """
    reader = asyncio.StreamReader()
    ours, theirs = os.pipe()
    try:
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", buffering=0)
        )
        try:
            process = await start_whole(
                asyncio.create_subprocess_shell(
                    command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=theirs,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        except BaseException:
            pipe.close()
            raise
    finally:
        os.close(theirs)
    timed_out = False
    output = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while len(output) <= CONSOLE_OUTPUT_BYTES_MAX and (part := await reader.read(65_536)):
                output += part
            if len(output) <= CONSOLE_OUTPUT_BYTES_MAX:
                await process.wait()
    except TimeoutError:
        timed_out = True
    finally:
        pipe.close()
        _kill_group(process.pid)  # what it left behind, too
        code = await to_the_end(process.wait())
    return code, bytes(output[: CONSOLE_OUTPUT_BYTES_MAX + 1]), timed_out


def _kill_group(pid: int) -> None:
    # Where all of it has ended, Linux says the first and macOS the second.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
