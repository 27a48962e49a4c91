"""Numbers of streams that a peer opens, as RFC 9000 section 2.1 gives them out."""

from __future__ import annotations

import pytest

from p2pnode.transport.quic_stream_ids import PeerStreamIds


def test_a_stream_opens_once() -> None:
    ids = PeerStreamIds(is_client=True)

    assert ids.opens(1)
    assert not ids.opens(1), "more bytes of a stream that is over are nobody's"
    assert ids.opens(5)


def test_a_stream_opens_all_lower_ones_whose_bytes_come_later() -> None:
    ids = PeerStreamIds(is_client=True)

    assert ids.opens(13)
    assert [ids.opens(number) for number in (9, 1, 5)] == [True, True, True]
    assert [ids.opens(number) for number in (1, 5, 9, 13)] == [False] * 4


@pytest.mark.parametrize(
    ("is_client", "number"),
    [
        pytest.param(True, 0, id="a client's own"),
        pytest.param(False, 1, id="a server's own"),
        pytest.param(True, 3, id="one-way, of a server"),
        pytest.param(False, 2, id="one-way, of a client"),
    ],
)
def test_other_numbers_open_nothing(is_client: bool, number: int) -> None:
    assert not PeerStreamIds(is_client=is_client).opens(number)


def test_a_client_opens_even_numbers_at_a_server() -> None:
    assert PeerStreamIds(is_client=False).opens(0)
