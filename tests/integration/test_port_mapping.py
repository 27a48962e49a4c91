"""Ports are mapped by a router on loopback that speaks UPnP; without library or router the words are clear."""

from __future__ import annotations

import sys

import pytest

from p2pnode.errors import TransportError
from p2pnode.transport.port_mapping import end_mapping, map_port
from tests.kit.fake_router import fake_router


def test_a_port_is_mapped_and_given_back() -> None:
    with fake_router() as router:
        mapping = map_port(9481, description_url=router.url)
        assert mapping.address == "/ip4/203.0.113.7/udp/9481/quic-v1"
        assert router.mappings == {9481: 9481}
        assert end_mapping(mapping)
        assert router.mappings == {}


def test_the_next_free_port_is_taken() -> None:
    with fake_router(9481, 9482) as router:
        assert map_port(9481, description_url=router.url).external_port == 9483
        assert router.mappings == {9483: 9481}


def test_a_router_that_refuses() -> None:
    with fake_router(*range(9481, 9500)) as router, pytest.raises(TransportError, match="did not map"):
        map_port(9481, description_url=router.url)


def test_without_a_router() -> None:
    with pytest.raises(TransportError, match="router"):
        map_port(9481, description_url="http://127.0.0.1:1/desc.xml")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "miniupnpc", None)
    with pytest.raises(TransportError, match="miniupnpc") as refused:
        map_port(9481)
    assert "pip install" in refused.value.hint
