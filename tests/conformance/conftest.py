"""One server for the tests of a module, and a fresh node behind it for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit.api_server import serving
from tests.kit.fake_node import FakeNode


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeNode, str]]:
    node = FakeNode()
    with serving(node) as url:
        yield node, url


@pytest.fixture
def node(served: tuple[FakeNode, str]) -> FakeNode:
    served[0].__init__()  # type: ignore[misc] # a fresh node behind the same server
    return served[0]


@pytest.fixture
def url(served: tuple[FakeNode, str], node: FakeNode) -> str:
    del node  # made fresh before anything is asked
    return served[1]
