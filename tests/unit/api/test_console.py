"""The console: off by default, then only for a shown admin key on this machine; bounded and recorded."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from p2pnode.api.console import run_command, verb_of
from p2pnode.api.security import ApiSecurity
from p2pnode.limits import CONSOLE_OUTPUT_BYTES_MAX
from tests.kit.fake_node import FakeNode
from tests.kit.net import until

ADMIN = {"Authorization": "Bearer admin-token"}


@pytest.fixture
def security() -> ApiSecurity:
    return ApiSecurity(admin_token="admin-token", console=True)


async def test_run(client, node: FakeNode) -> None:
    """Output, exit code, and a fact in the record that names the verb only."""
    response = await client.post(
        "/shell/exec", json={"command": "echo out; echo err >&2; exit 3"}, headers=ADMIN
    )
    answer = await response.get_json()
    assert (answer["exit_code"], answer["output"], answer["truncated"]) == (3, "out\nerr\n", False)
    name, fact = node.commands[0]
    assert (name, fact["verb"], fact["exit_code"]) == ("console_ran", "echo", 3)


def test_only_programs_are_named_in_the_record() -> None:
    """What else a command begins with may be a secret."""
    for command, verb in (
        ("ls -l /home", "ls"),
        ("  /bin/sh -c true", "sh"),
        ("TOKEN=hunter2 curl example.org", "shell"),
        ("hunter2", "shell"),
        ("export TOKEN=hunter2", "shell"),
        ("/home/me/hunter2/no-such-program", "shell"),
        (" ", "shell"),
    ):
        assert verb_of(command) == verb, command


async def test_off_by_default(client, security: ApiSecurity) -> None:
    security.console = False
    assert (await client.post("/shell/exec", json={"command": "id"}, headers=ADMIN)).status_code == 404


async def test_who_may(client, security: ApiSecurity) -> None:
    """Loopback alone is not enough, nor a use key, nor another machine."""
    assert (await client.post("/shell/exec", json={"command": "id"})).status_code == 403
    _, use = security.keys.create("", "use", 1)
    refused = await client.post(
        "/shell/exec", json={"command": "id"}, headers={"Authorization": f"Bearer {use}"}
    )
    assert refused.status_code == 403
    far = await client.post(
        "/shell/exec", json={"command": "id"}, headers=ADMIN, scope_base={"client": ("10.0.0.9", 1)}
    )
    assert far.status_code == 403


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf /",
        "rm -fr / --no-preserve-root",
        "mkfs.ext4 /dev/sda1",
        "dd if=/dev/zero of=/dev/sda",
        ":(){ :|:& };:",
        "shutdown now",
        "chmod -R 777 /",
    ],
)
async def test_slips(client, node: FakeNode, command: str) -> None:
    """The seat belt catches the famous slips before anything runs."""
    assert (await client.post("/shell/exec", json={"command": command}, headers=ADMIN)).status_code == 403
    assert node.commands == []


async def test_time_and_output_are_bounded(client) -> None:
    """A command that runs on is ended with its children; too much output is cut."""
    response = await client.post(
        "/shell/exec", json={"command": "sleep 60 & sleep 60", "timeout_s": 0.2}, headers=ADMIN
    )
    answer = await response.get_json()
    assert answer["timed_out"] is True
    assert answer["exit_code"] != 0
    answer = await (await client.post("/shell/exec", json={"command": "yes"}, headers=ADMIN)).get_json()
    assert answer["truncated"] is True
    assert len(answer["output"]) == 256 * 1024
    assert (
        await client.post("/shell/exec", json={"command": "id", "timeout_s": 121}, headers=ADMIN)
    ).status_code == 400


def state_of(pid: int) -> str:
    """In psutil's words; nothing where there is no such process."""
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return ""


async def test_what_a_command_leaves_in_the_background_ends_with_it() -> None:
    code, output, timed_out = await run_command("sleep 300 > /dev/null 2>&1 & echo $!", 60.0)
    assert (code, timed_out) == (0, False)
    await until(lambda: state_of(int(output)) in ("", psutil.STATUS_ZOMBIE))


async def test_who_leaves_the_session_with_the_output_keeps_nobody_waiting(tmp_path: Path) -> None:
    """It holds the other end of the pipe, as a daemon may."""
    kept = tmp_path / "pid"
    daemon = f"import os, time; os.setsid(); open('{kept}', 'w').write(str(os.getpid())); time.sleep(300)"
    command = f'{sys.executable} -c "{daemon}" & while ! test -s {kept}; do sleep 0.01; done; yes'
    try:
        code, output, timed_out = await run_command(command, 60.0)
    finally:
        os.kill(int(kept.read_text()), signal.SIGKILL)
    assert (code, len(output), timed_out) == (-signal.SIGKILL, CONSOLE_OUTPUT_BYTES_MAX + 1, False)
