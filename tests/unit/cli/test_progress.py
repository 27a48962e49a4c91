"""The progress line: what it says, and that it says nothing it does not know."""

from __future__ import annotations

import pytest

from p2pnode.cli.progress import ProgressLine, bar_text, duration_text, watch


def line_of(columns: int = 200) -> tuple[ProgressLine, list[str]]:
    written: list[str] = []
    return ProgressLine(written.append, columns), written


def test_line() -> None:
    line, written = line_of()
    event = {"state": "fetching", "node": "kitchen", "progress": 0.25, "eta_s": None, "done_bytes": 25_000_000,
             "total_bytes": 100_000_000}  # fmt: skip
    line.show(event, 10.0)
    assert written[-1].endswith("fetching on kitchen  25% ▕██████                  ▏ 25.0 MB/100.0 MB")
    line.show(event | {"progress": 0.5, "done_bytes": 50_000_000, "eta_s": 70.4}, 15.0)
    assert written[-1].endswith(" 50.0 MB/100.0 MB 5.0 MB/s 1m10s")
    line.show({"state": "loading", "node": "kitchen", "progress": 1.0, "eta_s": 0.0}, 16.0)
    assert written[-1].endswith("loading on kitchen 100% ▕████████████████████████▏ 0s")
    line.show({"state": "preparing", "node": "studio\x1b[2J", "progress": None, "eta_s": None}, 17.0)
    assert written[-1].endswith("preparing on studio [2J …")
    line.clear()
    line.clear()
    assert written[-1] == "\r\x1b[K"
    assert len(written) == 5


def test_narrow_terminal() -> None:
    line, written = line_of(20)
    line.show({"state": "loading", "node": "kitchen", "progress": 0.5}, 1.0)
    assert len(written[-1].removeprefix("\r\x1b[K")) == 19


def test_pieces() -> None:
    assert [duration_text(s) for s in (0.4, 59.6, 236, 3600, 7384)] == [
        "0s",
        "1m00s",
        "3m56s",
        "1h00m",
        "2h03m",
    ]
    assert bar_text(0.5, 4) == "██  "
    assert bar_text(0.53, 4) == "██▏ "
    assert bar_text(-1, 2) == "  "
    assert bar_text(2, 2) == "██"


def test_watch(capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe the events are silent; the answer is the last one, without its type."""

    def events():  # type: ignore[no-untyped-def]
        yield {"type": "transfer", "state": "fetching", "node": "a", "progress": 0.1}
        yield {"type": "done", "model": "m"}

    assert watch(events(), "done") == {"model": "m"}
    assert capsys.readouterr() == ("", "")
