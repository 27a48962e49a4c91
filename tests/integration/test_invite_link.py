"""From `p2pnode invite --link` to a member: a node on all interfaces, its page without a key, a join, and the end."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from p2pnode.bootstrap import RunningNode
from p2pnode.config import JoinOptions
from tests.integration.test_survival_paths import free_udp_port
from tests.kit.mesh import NodeProcess


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.loads(answer.read())


def invite(data: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "p2pnode", "invite", "--link", "--json", "--data", str(data)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})


async def test_a_link_is_opened_used_once_and_over(tmp_path: Path) -> None:
    port = free_udp_port()
    announced = tuple(f"/ip4/{host}/udp/{port}/quic-v1" for host in ("192.168.77.1", "127.0.0.1"))
    options = JoinOptions(
        data=tmp_path / "alpha", name="alpha", listen=(announced[1],), announce=announced, mdns=False, threads=1,
        api="0.0.0.0:0",
    )  # fmt: skip
    running = await RunningNode.start(options, lambda _: None)
    try:
        done = await asyncio.to_thread(invite, options.data)
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        page, _, ticket = made["link"].partition("#")
        api = running.server.port
        assert page == f"http://192.168.77.1:{api}/invite/{made['invite_id']}"
        assert ticket == made["ticket"]
        here = f"http://127.0.0.1:{api}/invite/{made['invite_id']}"
        about = await asyncio.to_thread(fetch, f"{here}/about")
        assert (about["mesh"], about["device"], about["role"]) == ("alpha-mesh", "alpha", "worker")
        assert about["peer_id"] == running.node.me
        beta = await asyncio.to_thread(NodeProcess, tmp_path, "beta", ticket)
        try:
            assert running.node.mesh.is_member(beta.peer_id)
            with pytest.raises(urllib.error.HTTPError) as over:
                await asyncio.to_thread(fetch, f"{here}/about")
            assert over.value.code == 404
            assert "ask for a new link" in over.value.read().decode()
            over.value.close()
        finally:
            assert await asyncio.to_thread(beta.stop) == 0
    finally:
        await running.stop("the test is over")


def test_on_loopback_the_words_say_what_to_open(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, "alone")
    try:
        done = invite(node.data)
        assert done.returncode == 1
        error = json.loads(done.stdout)["error"]
        assert "listens on 127.0.0.1 only" in error["message"]
        assert "--api 0.0.0.0:" in error["hint"]
        assert not [e for e in node.events("InviteCreated") if e["data"]["label"] != "first start"]
    finally:
        assert node.stop() == 0
