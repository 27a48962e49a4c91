"""Content ids are CIDv1, raw, BLAKE3-256, base32, and read back only in that exact form."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import BadModelFile
from p2pnode.models import cid


@given(st.binary(max_size=200))
def test_text_and_digest_are_two_forms_of_one_thing(data: bytes) -> None:
    assert cid.to_digest(cid.of(data)) == blake3(data).digest()


def test_parts_are_hashed_as_one() -> None:
    assert cid.of(b"ab", memoryview(b"c")) == cid.of(b"abc")


def test_known_value() -> None:
    """The empty input, as other CID tools print it."""
    assert cid.of(b"").startswith("bafkr4i")
    assert (
        cid.to_digest(cid.of(b"")).hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "bafkreiabc",
        cid.of(b"x").upper(),
        cid.of(b"x")[:-1],
        cid.of(b"x") + "a",
        "z" + cid.of(b"x")[1:],
        cid.of(b"x")[:20] + "1" + cid.of(b"x")[21:],
        cid.of(b"x")[:-1] + "7",
        "b" + "a" * 58,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadModelFile):
        cid.to_digest(text)
