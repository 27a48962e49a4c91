"""Match codes: the vectors, and that every part counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import RemoteProtocolError
from p2pnode.transport.match import check_nonce, check_reveal, commitment, match_code

VECTORS = json.loads((Path(__file__).parents[3] / "specs/vectors/match.json").read_text())["cases"]
keys, nonces = st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16)


def code_of(given_: dict[str, str]) -> str:
    fields = {name: bytes.fromhex(value) for name, value in given_.items()}
    check_reveal(fields["asker_nonce"], fields.pop("commitment"))
    check_nonce(fields["member_nonce"])
    return match_code(**fields)


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any]) -> None:
    if case["expect"] == "ok":
        assert code_of(case["input"]) == case["output"]
        return
    with pytest.raises(RemoteProtocolError) as refused:
        code_of(case["input"])
    assert refused.value.code == case["expect"]


@given(keys, keys, keys, nonces, nonces)
def test_six_digits_that_depend_on_who_asks_whom(a: bytes, b: bytes, c: bytes, n: bytes, m: bytes) -> None:
    code = match_code(mesh_key=a, asker_key=b, member_key=c, asker_nonce=n, member_nonce=m)
    assert len(code) == 6
    assert code.isdecimal()
    assert check_reveal(n, commitment(n)) == n
