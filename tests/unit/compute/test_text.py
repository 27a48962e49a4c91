"""Text for people: whole characters, and never a part of a stop sequence."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.compute.text import TextAssembler


def run(pieces: list[bytes], stop: list[str]) -> tuple[str, str | None]:
    assembler = TextAssembler(stop)
    shown = "".join(assembler.feed(piece) for piece in pieces) + assembler.finish()
    return shown, assembler.stopped


def test_characters_split_over_pieces() -> None:
    assembler = TextAssembler()
    assert assembler.feed("é".encode()[:1]) == ""
    assert assembler.feed("é".encode()[1:]) == "é"
    assert assembler.feed(b"\xff") == "�"
    assert assembler.feed(b"\xe2\x82") == ""
    assert assembler.finish() == "�"


def test_a_stop_sequence_over_three_pieces() -> None:
    assert run([b"one E", b"N", b"D two"], ["END"]) == ("one ", "END")
    assembler = TextAssembler(["END"])
    assert assembler.feed(b"an EN") == "an "
    assert assembler.feed(b"T") == "ENT"
    assembler.feed(b"END")
    assert (assembler.feed(b"more"), assembler.finish()) == ("", "")


def test_a_longer_stop_that_began_earlier_is_waited_for() -> None:
    assert run([b"ab", b"ba"], ["b", "abb"]) == ("", "abb")
    assert run([b"ab", b"c"], ["b", "abb"]) == ("a", "b")
    assert run([b"ab"], ["b", "abb"]) == ("a", "b")


def test_the_earliest_stop_wins() -> None:
    assert run([b"abcdef"], ["ef", "cd", ""]) == ("ab", "cd")


@given(st.text(max_size=60), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_any_cut_into_pieces_gives_the_same(text: str, stop: list[str], data: st.DataObject) -> None:
    raw = (text + "abba").encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    whole = raw.decode()
    ends = [whole.index(s) for s in stop if s in whole]
    shown, stopped = run(pieces, stop)
    assert shown == (whole[: min(ends)] if ends else whole)
    assert (stopped is not None) == bool(ends)
