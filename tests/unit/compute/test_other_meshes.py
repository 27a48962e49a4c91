"""Whose answer is asked for by which name, in which order and when: choosing among other meshes."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode.compute.other_meshes import (
    Beyond,
    Offer,
    beyond_of,
    in_order,
    may_move,
    metadata,
    named,
    same,
    split,
    told_model,
    views,
)
from p2pnode.errors import (
    Busy,
    ContextFull,
    EngineUnavailable,
    ModelIncomplete,
    NoPlan,
    OutOfMemory,
    P2PNodeError,
    PeerTimeout,
    RemoteProtocolError,
    StageLost,
)


def offer(
    mesh: str = "office", peer: str = "p1", name: str = "tiny", rtt_s: float = 0.01, **changes: Any
) -> Offer:
    told = {"name": name, "manifest": f"bafk-{name}", "complete": True, **changes}
    return Offer(f"id-{mesh}", mesh, peer, told_model(told), rtt_s)


def peers(found: list[Offer]) -> list[str]:
    return [one.peer for one in found]


def test_a_name_with_its_mesh_is_asked_for_there_only_and_whatever_the_setting() -> None:
    offers = [offer(), offer("friends", "p2"), offer("friends", "p3", "large")]
    for policy in ("needed", "full", "never"):
        assert peers(named(offers, "tiny@friends", policy)) == ["p2"]
        assert peers(named(offers, "bafk-large@friends", policy)) == ["p3"]
        assert named(offers, "large@office", policy) == []


def test_a_bare_name_and_no_name_go_to_one_mesh_where_the_operator_allows_it() -> None:
    offers = [
        offer(peer="far", rtt_s=0.2),
        offer(peer="part", rtt_s=0.001, complete=False),
        offer("friends", "near", rtt_s=0.05),
        offer("friends", "other", "large", default=True),
    ]
    assert peers(named(offers, "tiny", "needed")) == ["near"], "the nearest of those that have it whole"
    assert peers(named(offers[:2], "tiny", "needed")) == ["far", "part"], "the others of that mesh follow"
    assert peers(named(offers, "bafk-tiny", "full")) == ["near"]
    assert peers(named(offers, None, "needed")) == ["other"], "what is asked for there when nobody names one"
    assert named(offers, "unknown", "needed") == []
    assert named(offers, "tiny", "never") == named(offers, None, "never") == []


def test_only_the_very_same_model_takes_over() -> None:
    offers = [
        offer(peer="b", rtt_s=0.02),
        offer("friends", "a"),
        offer(name="tiny", peer="c", manifest="bafk-else"),
    ]
    assert peers(same(offers, "bafk-tiny")) == ["a", "b"]
    assert peers(in_order([offer(peer="b"), offer(peer="a")])) == ["a", "b"]


@pytest.mark.parametrize(
    ("error", "moves"),
    [
        (NoPlan("it fits nowhere"), {"needed", "full"}),
        (ModelIncomplete("layers are missing"), {"needed", "full"}),
        (OutOfMemory("no memory"), {"needed", "full"}),
        (StageLost("gone"), {"needed", "full"}),
        (EngineUnavailable("died"), {"needed", "full"}),
        (PeerTimeout("silent"), {"needed", "full"}),
        (Busy("full"), {"full"}),
        (ContextFull("too long"), set()),
        (RemoteProtocolError("nonsense"), set()),
    ],
)
def test_what_ends_a_request_here_decides_whether_another_mesh_is_asked(
    error: P2PNodeError, moves: set[Beyond]
) -> None:
    policies: tuple[Beyond, ...] = ("needed", "full", "never")
    assert {policy for policy in policies if may_move(error, policy)} == moves


def test_names_of_models_may_have_the_mark() -> None:
    meshes = ["office"]
    assert split("a@b@office", meshes) == ("a@b", "office")
    assert split("a@b", meshes) is split("@office", meshes) is split("office", meshes) is None


def test_a_setting_that_is_no_word_counts_as_not_set() -> None:
    assert [beyond_of(word) for word in ("full", "never", "", "perhaps")] == [
        "full",
        "never",
        "needed",
        "needed",
    ]


def test_a_model_of_many_members_is_one_line_marked_with_its_mesh() -> None:
    offers = [offer(peer="b", complete=False), offer(peer="a", layers=8), offer(name="big")]
    big, tiny = views(offers)
    assert (big["name"], tiny["name"], tiny["mesh"], tiny["holders"]) == (
        "big@office",
        "tiny@office",
        "office",
        ["a", "b"],
    )
    assert (tiny["layers"], tiny["here"], tiny["default"]) == (8, "no", False)


def test_a_conversation_is_written_with_what_that_mesh_tells_of_the_template() -> None:
    told = metadata(offer(chat_template="{{ messages }}", bos_token="<s>", add_bos=True))
    assert (told["chat_template"], told["bos_token"], told["add_bos"]) == ("{{ messages }}", "<s>", True)
    assert "external" not in told
    external = offer(manifest="", external=True)
    assert metadata(external)["external"] is True
    assert (external.asked_as, offer().asked_as) == ("tiny", "bafk-tiny")


@pytest.mark.parametrize(
    "told",
    [
        None,
        {"name": ""},
        {"name": "x" * 129},
        {"name": "x", "layers": -1},
        {"name": "x", "chat_template": "y" * 65_537},
        {"name": "x", "complete": "yes"},
    ],
)
def test_a_model_that_cannot_be_read_is_refused(told: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="cannot be read"):
        told_model(told)
