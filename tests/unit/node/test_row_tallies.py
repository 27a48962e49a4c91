"""What a device counts of the rows it computed, and how ranks share a stage's work."""

from __future__ import annotations

import pytest

from p2pnode.compute.row_tally import RowTallies, TalliedStage, rank_part
from p2pnode.limits import ROW_TALLIES_KEPT_MAX
from tests.kit.receipt_ring import PLAN, SESSION, rows


def test_tallies_are_bounded_and_count_a_replay_once() -> None:
    tallies = RowTallies()

    def stage(number: int) -> TalliedStage:
        return TalliedStage(f"p{number}", "head", (0, 2))

    for number in range(ROW_TALLIES_KEPT_MAX + 1):
        tallies.add(stage(number), rows(0, 5, b"x"), rows(0, 5, b"y"))
    assert tallies.get("p0", SESSION, (0, 2)) is None
    tally = tallies.get("p1", SESSION, (0, 2))
    assert tally is not None
    tally.add(rows(3, 4, b"z"), rows(3, 4, b"z"))
    assert (tally.rows, tally.position_first, tally.position_end, tally.layer_tokens) == (9, 0, 7, 14)
    assert len(tally.input_digest) == len(tally.output_digest) == 32
    tallies.add(stage(1), rows(0, 1, b"x"), rows(0, 1, b"y"))
    again = tallies.get("p1", SESSION, (0, 2))
    assert again is not None
    assert again.rows == 1, "a head that started again counts its sessions from the first"


def test_what_a_receipt_was_given_for_is_not_counted_again() -> None:
    tallies = RowTallies()
    stage = TalliedStage(PLAN, "head", (0, 2))
    tallies.add(stage, rows(0, 5, b"x"), rows(0, 5, b"y"))
    tally = tallies.get(PLAN, SESSION, (0, 2))
    assert tally is not None
    before = tally.input_digest
    tally.cut()
    assert (tally.layer_tokens, tally.rows) == (0, 0)
    tally.add(rows(0, 5, b"x"), rows(0, 5, b"y"))
    assert tally.layer_tokens == 0, "a replay of what was receipted"
    tally.add(rows(5, 2, b"z"), rows(5, 2, b"z"))
    assert (tally.position_first, tally.position_end, tally.layer_tokens) == (5, 7, 4)
    assert tally.input_digest != before


@pytest.mark.parametrize(
    ("work", "shares", "parts"),
    [
        (10, [], [10]),
        (10, [1], [10]),
        (10, [2, 2], [5, 5]),
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [3, 1], [5, 2]),
        (1, [1, 1], [1, 0]),
    ],
)
def test_ranks_share_a_stages_work_by_their_width(work: int, shares: list[int], parts: list[int]) -> None:
    found = [rank_part(work, rank, shares) for rank in range(max(len(shares), 1))]
    assert found == parts
    assert sum(found) == work
