"""The page behind an invite's link: who may see what of it, where it can be reached, and what it gives away."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from p2pnode import limits
from p2pnode.api.app import create_app
from p2pnode.api.invite_page import page_base
from p2pnode.api.package_archive import Archive
from p2pnode.api.security import ApiSecurity
from p2pnode.errors import RequestError
from tests.kit.fake_node import FakeNode

OPEN, USED = "a" * 32, "b" * 32
MULTIADDRS = [
    "/ip4/127.0.0.1/udp/9481/quic-v1/p2p/X",
    "/ip6/fe80::1/udp/9481/quic-v1/p2p/X",
    "/ip6/fd00::5/udp/9481/quic-v1/p2p/X",
    "/ip4/192.168.1.20/udp/9481/quic-v1/p2p/X",
    "/ip4/203.0.113.7/udp/9481/quic-v1/p2p/X",
]


class Inviting(FakeNode):
    def log_query(self, name: str, arguments: Mapping[str, Any]) -> Any:
        assert name == "invites"
        common = {"role": "worker", "expires_ms": 5, "label": "for nobody to see"}
        return {
            "invites": [
                {"invite_id": OPEN, "state": "open", "uses_left": 2, **common},
                {"invite_id": USED, "state": "used", "uses_left": 0, **common},
            ]
        }

    def status(self) -> dict[str, Any]:
        return {**super().status(), "addresses": MULTIADDRS}


def client(host: str = "0.0.0.0") -> Any:
    return create_app(Inviting(), ApiSecurity(host=host)).test_client()


async def test_it_needs_no_key_and_tells_only_of_open_invites() -> None:
    asked = client()
    assert (await asked.get("/peers")).status_code == 401
    page = await asked.get(f"/invite/{OPEN}")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert page.headers["Referrer-Policy"] == "no-referrer"
    about = await (await asked.get(f"/invite/{OPEN}/about")).get_json()
    assert (about["mesh"], about["device"], about["uses_left"]) == ("home", "studio", 2)
    assert about["address"].startswith("/ip6/fe80") or "127.0.0.1" not in about["address"]
    assert "nobody to see" not in json.dumps(about)
    for wrong in (USED, "c" * 32, "A" * 32, "x", "a" * 33):
        for path in ("about", "p2pnode.tar.gz"):
            assert (await asked.get(f"/invite/{wrong}/{path}")).status_code == 404, (wrong, path)
    assert (await asked.get("/invite/x")).status_code == 404


async def test_foreign_names_and_pages_are_refused() -> None:
    asked = client()
    rebound = await asked.get(f"/invite/{OPEN}/about", headers={"Host": "evil.example"})
    assert rebound.status_code == 403
    foreign = await asked.get(f"/invite/{OPEN}/about", headers={"Sec-Fetch-Site": "cross-site"})
    assert foreign.status_code == 403


async def test_an_address_may_ask_so_often() -> None:
    asked = client()
    statuses = [
        (await asked.get(f"/invite/{'c' * 32}/about")).status_code
        for _ in range(limits.INVITE_PAGE_REQUESTS_PER_MINUTE + 1)
    ]
    assert (statuses[:-1], statuses[-1]) == ([404] * limits.INVITE_PAGE_REQUESTS_PER_MINUTE, 429)


async def test_the_program_it_gives_away_runs(tmp_path: Path) -> None:
    asked = client()
    about = await (await asked.get(f"/invite/{OPEN}/about")).get_json()
    raw = await (await asked.get(f"/invite/{OPEN}/p2pnode.tar.gz")).get_data()
    assert about["program"] == {"sha256": hashlib.sha256(raw).hexdigest(), "size_bytes": len(raw)}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(raw))) as tar:
        names = set(tar.getnames())
        tar.extractall(tmp_path, filter="data")
    needed = {
        "pyproject.toml",
        "constraints.txt",
        "tools/setup_env.py",
        "p2pnode/compute/_watch.c",
        "Makefile",
    }
    assert needed | {"web/invite.js", "models/p2pnode-demo.gguf", "LICENSE"} <= names
    assert not {name for name in names if name.startswith((".", "tests/")) or "__pycache__" in name}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "p2pnode", "version", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["version"] == about["version"]
    again = await Archive().packed()
    assert again is not None
    assert again.sha256 == about["program"]["sha256"]


async def test_an_installed_program_has_no_source_to_give(tmp_path: Path) -> None:
    assert await Archive(tmp_path).packed() is None


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("0.0.0.0", "http://192.168.1.20:9480"),
        ("::", "http://192.168.1.20:9480"),
        ("192.168.7.7", "http://192.168.7.7:9480"),
        ("fd00::9", "http://[fd00::9]:9480"),
        ("studio.local", "http://studio.local:9480"),
    ],
)
def test_a_link_names_an_address_of_the_local_network(host: str, base: str) -> None:
    assert page_base(host, 9480, MULTIADDRS) == base


def test_what_must_be_opened_is_said_and_not_done() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        with pytest.raises(RequestError, match="only") as refused:
            page_base(host, 9480, MULTIADDRS)
        assert "--api 0.0.0.0:9480" in refused.value.hint
        assert "firewall" in refused.value.hint
    with pytest.raises(RequestError, match="no address on a local network"):
        page_base(
            "0.0.0.0", 9480, ["/ip4/203.0.113.7/udp/1/quic-v1", "/ip4/169.254.1.1/udp/1/quic-v1", "/dns/x"]
        )


async def test_no_invite_is_made_where_its_link_would_lead_nowhere() -> None:
    node = FakeNode()
    asked = create_app(node, ApiSecurity()).test_client()
    answer = await asked.post(
        "/invites?link=1", json={}, scope_base={"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 9480)}
    )
    assert answer.status_code == 400
    assert "listens on 127.0.0.1 only" in (await answer.get_json())["error"]["message"]
