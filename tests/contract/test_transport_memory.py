"""The in-memory transport keeps the transport contract."""

from __future__ import annotations

import pytest

from p2pnode.transport.memory import MemoryNetwork
from p2pnode.transport.port import Transport
from tests.contract.transport_contract import TransportContract
from tests.kit.net import identity


class TestMemoryTransport(TransportContract):
    path = "memory"

    @pytest.fixture(autouse=True)
    def network(self) -> MemoryNetwork:
        self.net = MemoryNetwork(seed=1)
        return self.net

    def make(self, name: str) -> Transport:
        return self.net.transport(identity(name))

    def unreachable_address(self) -> str:
        return "/ip4/10.9.9.9/udp/4001/quic-v1"
