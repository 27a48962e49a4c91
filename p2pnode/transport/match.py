"""The match code of an approval: six digits that both people see. Pure. Source: specs/02-invites.md

It confirms, it does not admit. Both nonces go into it, and the asker commits to its own before it sees the
other: somebody in between has one guess in a million, not time to search for two codes that are alike.
"""

from __future__ import annotations

import hashlib
import hmac

from p2pnode.errors import RemoteProtocolError

NONCE_BYTES = 16
DIGITS = 6
_CODE_DOMAIN = b"p2pnode-match-v1:"
_COMMITMENT_DOMAIN = b"p2pnode-match-commitment-v1:"


def commitment(nonce: bytes) -> bytes:
    """What the asker shows first."""
    return hashlib.sha256(_COMMITMENT_DOMAIN + nonce).digest()


def check_nonce(nonce: bytes) -> bytes:
    if len(nonce) != NONCE_BYTES:
        raise RemoteProtocolError(f"a nonce has {NONCE_BYTES} bytes")
    return nonce


def check_reveal(nonce: bytes, committed: bytes) -> bytes:
    """The nonce behind a commitment; raises RemoteProtocolError for any other."""
    if not hmac.compare_digest(commitment(check_nonce(nonce)), committed):
        raise RemoteProtocolError("the nonce is not the one that was committed to")
    return nonce


def match_code(
    *, mesh_key: bytes, asker_key: bytes, member_key: bytes, asker_nonce: bytes, member_nonce: bytes
) -> str:
    """Six digits; every part has a fixed size, so no two questions hash the same bytes."""
    parts = (mesh_key, asker_key, member_key, asker_nonce, member_nonce)
    digest = hashlib.sha256(_CODE_DOMAIN + b"".join(parts)).digest()
    return str(int.from_bytes(digest[:8], "big") % 10**DIGITS).zfill(DIGITS)
