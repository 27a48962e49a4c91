"""Two devices under one identity are told from one that started again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.events import types as facts
from p2pnode.node.duplicates import Duplicates
from p2pnode.node.instances import Instance, Instances, read_clashes
from p2pnode.transport.messages import Status
from p2pnode.units import PeerId

PEER, ME = PeerId("12D3KooWpeer"), PeerId("12D3KooWme")
A, B, C = (Instance(f"{letter}" * 16, f"host-{letter}") for letter in "abc")


def test_a_device_that_starts_again_is_one_device() -> None:
    seen = Instances()
    for at, instance in enumerate((A, A, A, B, B, C, C)):
        assert seen.heard(PEER, instance, at) is None
    assert seen.clashes(10) == {}


def test_an_old_instance_that_is_back_is_another_device() -> None:
    seen = Instances()
    assert seen.heard(PEER, A, 0) is None
    assert seen.heard(PEER, B, 1) is None
    assert seen.heard(PEER, A, 2) == (A, B)
    assert seen.heard(PEER, B, 3) is None  # the same two again
    assert {instance.id for instance in seen.clashes(4)[PEER]} == {A.id, B.id}


def test_it_is_over_when_one_of_them_is_silent() -> None:
    seen = Instances()
    for at, instance in enumerate((A, B, A)):
        seen.heard(PEER, instance, at)
    end = 1 + limits.DUPLICATE_KEPT_S
    seen.heard(PEER, A, end)
    assert PEER in seen.clashes(end)
    assert seen.clashes(end + 1) == {}


@given(st.lists(st.sampled_from("abcdefgh"), max_size=40))
def test_memory_is_bounded_and_only_a_return_counts(order: list[str]) -> None:
    seen, before = Instances(), ""
    for at, letter in enumerate(order):
        clash = seen.heard(PEER, Instance(letter, letter), at)
        if clash is not None:
            assert letter in order[:at]
            assert letter != before
        before = letter
        assert len(seen._heard[PEER]) <= limits.INSTANCES_KEPT_MAX


@pytest.mark.parametrize("said", [None, [], {PEER: 1}, {PEER: [1, {"id": 2}, {"id": "x" * 99, "host": "h"}]}])
def test_what_cannot_be_read_is_left_out(said: object) -> None:
    assert not any(read_clashes(said).values())


class Device:
    def __init__(self, me: PeerId, mine: Instance) -> None:
        self.recorded: list[facts.IdentityDuplicated] = []
        self.told_everyone = 0
        self.now_s = 0.0
        self.duplicates = Duplicates(
            me=me,
            mine=mine,
            record=self.recorded.append,
            changed=self._changed,
            name_of=lambda peer: "beta",
            now_s=lambda: self.now_s,
        )

    def _changed(self) -> None:
        self.told_everyone += 1

    def hear(self, peer: PeerId, extra: dict[str, object]) -> None:
        self.duplicates.heard(peer, Status(
            name="x", version="1", role="worker", mesh_key=b"", addresses=[], grants=[], revocations=[],
            models=[], capability={}, state="active", now_ms=1, checkpoint="", extra=extra,
        ))  # fmt: skip


def test_the_observer_records_it_and_both_are_told() -> None:
    observer = Device(PeerId("12D3KooWobserver"), C)
    one, other = Device(ME, A), Device(ME, B)
    for speaker in (one, other, one, other, one):
        observer.hear(ME, speaker.duplicates.status())
    (fact,) = observer.recorded
    assert {fact.device, fact.other_device} == {"host-a", "host-b"}
    assert observer.told_everyone == 1
    assert "host-a" in str(observer.duplicates.of(ME))
    assert "host-b" in str(observer.duplicates.of(ME))
    for device, elsewhere in ((one, "host-b"), (other, "host-a")):
        assert device.duplicates.of(ME) is None
        device.hear(PEER, observer.duplicates.status())
        device.hear(PEER, observer.duplicates.status())
        assert f"also runs on {elsewhere}" in str(device.duplicates.of(ME))
        assert [fact.other_device for fact in device.recorded] == [elsewhere]
        device.now_s += limits.DUPLICATE_KEPT_S + 1
        assert device.duplicates.of(ME) is None


def test_a_member_that_speaks_of_the_past_is_not_believed() -> None:
    """Neither of both is this instance: both are former starts of this very device, or invented."""
    device = Device(ME, C)
    device.hear(PEER, {"duplicates": {ME: [A.as_dict(), B.as_dict()]}})
    assert device.duplicates.of(ME) is None
    assert device.recorded == []


def test_a_member_cannot_fill_the_record_with_inventions() -> None:
    liar, device = PEER, Device(ME, A)
    for number in range(50):
        for name in (f"x{number}", f"y{number}", f"x{number}"):
            device.hear(liar, {"instance": {"id": name, "host": name}})
        device.hear(liar, {"duplicates": {ME: [A.as_dict(), {"id": f"z{number}", "host": "z"}]}})
    assert len(device.recorded) == 2
    assert len(device.duplicates._told_at_s) <= limits.INSTANCES_KEPT_MAX
