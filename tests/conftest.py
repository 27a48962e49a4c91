"""Settings for every test: hypothesis without deadlines (machines are shared), seeds printed on failure.

And one rule: a test leaves no process behind. What it forgot would be noticed by a later test, or by nobody.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.kit.children import children, describe

settings.register_profile(
    "default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", deadline=None, max_examples=5000)
settings.load_profile("default")

# Who is started in the background of a script ignores Ctrl-C, and so would every program that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _leaves_no_process_behind() -> Iterator[None]:
    before = children()
    yield
    left = children() - before
    assert not left, f"left behind: {[describe(pid) for pid in sorted(left)]}"
