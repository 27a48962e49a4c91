"""Two logs of one node that agree on their first 300 events and on no later one."""

from __future__ import annotations

import pytest

from tests.kit.log_trees import Tree


@pytest.fixture(scope="session")
def honest() -> Tree:
    return Tree(600)


@pytest.fixture(scope="session")
def forked() -> Tree:
    return Tree(600, fork_at=300)
