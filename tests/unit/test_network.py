"""Which addresses are free, and how strangers are counted."""

from __future__ import annotations

import pytest

from p2pnode.network import network_bucket, path_of


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.0.9", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("10.0.0.1", "lan"),
        ("172.16.0.1", "lan"),
        ("172.31.255.255", "lan"),
        ("192.168.1.5", "lan"),
        ("::ffff:192.168.1.5", "lan"),
        ("169.254.7.7", "lan"),
        ("fd12:3456::1", "lan"),
        ("fe80::1", "lan"),
        ("fe80::1%eth0", "lan"),
        ("172.32.0.1", "wan"),
        ("172.15.255.255", "wan"),
        ("100.64.0.1", "wan"),
        ("192.0.2.1", "wan"),
        ("198.18.0.1", "wan"),
        ("0.0.0.0", "wan"),
        ("::", "wan"),
        ("2001:db8::1", "wan"),
        ("::ffff:8.8.8.8", "wan"),
        ("fec0::1", "wan"),
        ("8.8.8.8", "wan"),
        ("192.168.1.5, 127.0.0.1", "wan"),
        ("localhost", "wan"),
        ("", "wan"),
    ],
)
def test_only_private_and_own_addresses_are_free(address: str, path: str) -> None:
    assert path_of(address) == path


@pytest.mark.parametrize(
    ("address", "bucket"),
    [
        ("203.0.113.77", "203.0.113.0/24"),
        ("::ffff:203.0.113.77", "203.0.113.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1::/48"),
        ("not an address", ""),
    ],
)
def test_strangers_are_counted_by_network(address: str, bucket: str) -> None:
    assert network_bucket(address) == bucket
