"""mDNS over real multicast between hosts of its own network: several interfaces, IPv4 and IPv6, and none at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.net import identity
from tests.kit.networks import Host, connect, hosts

pytestmark = pytest.mark.slow  # needs root for its namespaces

HEARD_S_MAX = 30.0
CLI = ("-m", "p2pnode")


@contextmanager
def device(host: Host, name: str, address: str = "/ip4/192.0.2.1/udp/4001/quic-v1") -> Iterator[Any]:
    """Announces itself on the host until the end; gives what it prints."""
    process = host.python("-m", "tests.kit.nearby_peer", name, address)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline()) == {"started": name}
        yield process.stdout
    finally:
        process.stdin.close()
        try:
            process.wait(HEARD_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def hears(output: Any, *names: str) -> dict[str, list[str]]:
    """Reads until all of them were heard; a device that hears nobody runs into the test's own limit."""
    wanted = {identity(name).peer_id: name for name in names}
    found: dict[str, list[str]] = {}
    for line in output:
        heard = json.loads(line)
        if heard["peer"] in wanted:
            found[wanted[heard["peer"]]] = heard["addresses"]
        if len(found) == len(wanted):
            return found
    raise AssertionError(f"heard only {found}")


def test_a_device_on_two_networks_hears_both_and_is_heard_on_both() -> None:
    with hosts(3) as (middle, left, right):
        connect(middle, left, "lan0", net="10.77.1")
        connect(middle, right, "lan1", net="10.77.2")
        address = "/ip4/10.77.1.2/udp/4001/quic-v1"
        with (
            device(middle, "middle") as seen,
            device(left, "left", address) as by_left,
            device(right, "right") as by_right,
        ):
            assert hears(seen, "left", "right")["left"] == [address]
            hears(by_left, "middle")
            hears(by_right, "middle")


def test_ipv6_alone() -> None:
    """Link-local addresses and ff02::fb; no host has an IPv4 address but loopback's."""
    with hosts(2) as (one, other):
        connect(one, other, "lan0")
        with (
            device(one, "one") as by_one,
            device(other, "other", "/ip6/fd00::2/udp/4001/quic-v1") as by_other,
        ):
            assert hears(by_one, "other") == {"other": ["/ip6/fd00::2/udp/4001/quic-v1"]}
            hears(by_other, "one")


def test_loopback_where_there_is_nothing_else() -> None:
    with hosts(1) as (host,), device(host, "one") as by_one, device(host, "other") as by_other:
        hears(by_one, "other")
        hears(by_other, "one")


def doctor(host: Host, folder: Path) -> dict[str, str]:
    done = host.run(sys.executable, *CLI, "doctor", "--json", "--data", str(folder), check=False)
    (check,) = [c for c in json.loads(done.stdout)["checks"] if c["name"] == "multicast"]
    return check


def test_doctor_says_where_multicast_works(tmp_path: Path) -> None:
    with hosts(2) as (one, other):
        connect(one, other, "lan0", net="10.77.1")
        check = doctor(one, tmp_path)
        assert check["state"] == "ok"
        assert "lan0 IPv4" in check["message"]
        assert "lan0 IPv6" in check["message"]


def test_without_any_interface_everything_says_so_in_words(tmp_path: Path) -> None:
    with hosts(1) as (host,):
        host.ip("link", "set", "lo", "down")
        check = doctor(host, tmp_path)
        assert (check["state"], "no interface" in check["message"]) == ("note", True)
        assert "--peer" in check["hint"]
        done = host.run(sys.executable, "-m", "tests.kit.nearby_peer", "one", "/ip4/192.0.2.1/udp/1/quic-v1")
        assert "no multicast on this network" in json.loads(done.stdout)["error"]
        done = host.run(sys.executable, *CLI, "join", "--nearby", "--data", str(tmp_path / "n"), check=False)
        assert done.returncode == 1
        assert "no multicast on this network" in done.stderr


def test_an_interface_that_carries_no_multicast_is_not_used(tmp_path: Path) -> None:
    with hosts(2) as (one, other):
        connect(one, other, "lan0", net="10.77.1")
        one.ip("link", "set", "lan0", "multicast", "off")
        assert "lan0" not in doctor(one, tmp_path)["message"]


def test_join_nearby_lists_the_mesh_on_the_network(tmp_path: Path) -> None:
    """The command line, two real hosts: found by multicast, asked over QUIC."""
    with hosts(2) as (one, other):
        connect(one, other, "lan0", net="10.77.1")
        node = host_node(one, tmp_path / "kitchen")
        try:
            assert node.stdout is not None
            hello = json.loads(node.stdout.readline())
            done = other.run(
                sys.executable, *CLI, "join", "--nearby", "--json", "--data", str(tmp_path / "n")
            )
            assert hello["mesh"] in done.stdout
            assert hello["peer_id"] in done.stdout
        finally:
            node.terminate()
            assert node.wait(HEARD_S_MAX) == 0
            assert node.stdout is not None
            node.stdout.close()


def host_node(host: Host, data: Path) -> subprocess.Popen[str]:
    words = [*CLI, "join", "--data", str(data), "--name", "kitchen", "--json", "--threads", "1"]
    words += ["--listen", "/ip4/0.0.0.0/udp/0/quic-v1", "--api", "127.0.0.1:0"]
    return subprocess.Popen(host.command(sys.executable, *words), stdout=subprocess.PIPE, text=True)


def test_a_device_that_comes_to_another_network_is_found_there(tmp_path: Path) -> None:
    """It started with one network; a cable to another is plugged in while it runs."""
    with hosts(3) as (one, first, second):
        connect(one, first, "lan0", net="10.77.1")
        node = host_node(one, tmp_path / "kitchen")
        try:
            assert node.stdout is not None
            hello = json.loads(node.stdout.readline())
            connect(one, second, "lan1", net="10.77.2")
            for _ in range(10):  # each listens for four seconds
                words = ["join", "--nearby", "--json", "--data", str(tmp_path / "n")]
                done = second.run(sys.executable, *CLI, *words)
                if hello["peer_id"] in done.stdout:
                    break
            assert hello["mesh"] in done.stdout
        finally:
            node.terminate()
            assert node.wait(HEARD_S_MAX) == 0
            assert node.stdout is not None
            node.stdout.close()
