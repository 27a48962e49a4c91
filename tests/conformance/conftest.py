"""One server for the tests of a module, and a fresh node behind it for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from p2pnode.facade import NodeFacade
from tests.kit.api_server import Stand, serving
from tests.kit.fake_node import FakeNode


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Stand, str]]:
    stand = Stand()
    with serving(cast(NodeFacade, stand)) as url:
        yield stand, url


@pytest.fixture
def node(served: tuple[Stand, str]) -> FakeNode:
    served[0].node = FakeNode()
    return served[0].node


@pytest.fixture
def url(served: tuple[Stand, str], node: FakeNode) -> str:
    del node  # made fresh before anything is asked
    return served[1]
