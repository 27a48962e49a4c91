"""Notices that this device is on another network: a laptop carried home, a cable, a phone that shares its link.

Every operating system tells programs about that in a way of its own, so it is looked at every few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable

from p2pnode import limits

Look = Callable[[], Hashable]
"""What of the network matters, as a value that differs when it does."""


async def watch_network(
    look: Look,
    changed: Callable[[], Awaitable[None]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Calls `changed` once for each network this device comes to; interfaces that still settle count as one."""
    known = look()
    while True:
        await sleep(limits.NETWORK_LOOK_S)
        seen = look()
        if seen == known:
            continue
        while True:
            await sleep(limits.NETWORK_SETTLE_S)
            settled = look()
            if settled == seen:
                break
            seen = settled
        if seen != known:
            known = seen
            await changed()
