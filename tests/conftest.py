"""Settings for every test: hypothesis without deadlines (machines are shared), seeds printed on failure.

And one rule: a test leaves no process behind. What it forgot would be noticed by a later test, or by nobody.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.kit.children import children, describe

settings.register_profile(
    "default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", deadline=None, max_examples=5000)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _leaves_no_process_behind() -> Iterator[None]:
    before = children()
    yield
    left = children() - before
    assert not left, f"left behind: {[describe(pid) for pid in sorted(left)]}"
