"""Names for numbers and ids, so that an index is never taken for a size."""

from __future__ import annotations

from typing import NewType

PeerId = NewType("PeerId", str)
"""Text form of a libp2p peer id (base58btc multihash, `12D3Koo...`)."""

ContentId = NewType("ContentId", str)
"""CIDv1 (raw codec, BLAKE3-256) in base32 text form, `bafk...`."""

EventIndex = NewType("EventIndex", int)
"""0-based position of an event in a node's log: its leaf index."""

LogSize = NewType("LogSize", int)
"""Number of events in a log."""

UnixMs = NewType("UnixMs", int)
"""Milliseconds since 1970-01-01T00:00:00Z."""

SessionId = NewType("SessionId", int)
"""Unsigned 64-bit, chosen by the head, unique among its sessions."""

MICRO_PER_UNIT = 1_000_000
"""Billing amounts are whole micro-units."""
