"""The console: off by default, then only for a shown admin key on this machine; bounded and recorded."""

from __future__ import annotations

import pytest

from p2pnode.api.console import verb_of
from p2pnode.api.security import ApiSecurity
from tests.kit.fake_node import FakeNode

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
