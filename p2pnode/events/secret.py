"""Salted commitments: what the log says about texts it must be able to forget."""

from __future__ import annotations

import hmac


def commitment_of(salt: bytes, text: bytes) -> bytes:
    """HMAC-SHA-256 under a random 32-byte salt: says nothing about the text once the salt is gone."""
    return hmac.digest(salt, text, "sha256")
