"""A long, seeded life of a node in which every kind of fact happens: for replays, views and snapshots."""

from __future__ import annotations

import contextlib
from random import Random

from p2pnode import commands as c
from p2pnode.errors import P2PNodeError
from p2pnode.events import types as facts
from p2pnode.events.types import Event, UnknownEvent
from tests.kit.receipts import Channel, keys_of
from tests.kit.story import HASH, Story, finish, serve

PEERS = [f"12D3KooPeer{number}" for number in range(5)]
CALLERS = ["local", "key1", "key2", *PEERS]


def chronicle(seed: int, steps: int = 300) -> Story:
    """A story of a few hundred facts; the same seed, the same bytes."""
    rng = Random(seed)
    me = keys_of("me")
    story = Story(me.peer)
    given, received = Channel(keys_of("them"), me), Channel(me, keys_of("them"))
    story.do(c.StartNode(version="1", platform="linux", device_name="desk"))
    story.do(c.CreateMesh(mesh_id="m1", mesh_name="home"))
    for fact in _forwarded():
        story.tell(fact)
    for number in range(steps):
        story.now_ms += rng.choice((0, 1, 50, 1000, 60_000, 3_600_000, 86_400_000))
        _step(story, rng, number, given, received)
    return story


def _forwarded() -> tuple[Event, ...]:
    """Two requests that others serve, one of them still under way."""
    one, two = (
        facts.RequestForwarded(
            request_id=f"f{number}",
            caller="local",
            model="bafk0",
            peer=PEERS[number],
            prompt_commitment=HASH,
            max_tokens=9,
        )
        for number in (0, 1)
    )
    ended = facts.ForwardedRequestEnded(
        request_id="f0",
        peer=PEERS[0],
        served_as="r0",
        reason="stop",
        prompt_tokens=3,
        completion_tokens=9,
        answer_commitment=HASH,
        cost_microunits=1000,
        duration_ms=40,
    )
    return one, two, ended


def _step(story: Story, rng: Random, number: int, given: Channel, received: Channel) -> None:
    kind = rng.randrange(10)
    if kind < 4:
        _request(story, rng, number)
    elif kind < 7:
        _attempt(story, _command(story, rng, number))
    elif kind == 7:
        story.tell(_fact(rng, number))
    elif rng.random() < 0.3:
        _attempt(story, c.ExpireHolds())
    elif kind == 8:
        signed = [given.signed(given.next(request_id=f"r{number}")) for _ in range(number % 3 + 1)]
        if rng.random() < 0.5:
            story.do(given.give(*signed, agreed=False))
        story.do(given.give(*signed))
    else:
        offered = [received.signed(received.next(request_id=f"r{number}")) for _ in range(number % 3 + 1)]
        story.do(received.accept(*offered))


def _attempt(story: Story, command: c.Command) -> None:
    """Refusals are part of life."""
    key = command.idempotency_key if isinstance(command, c.TopUp) else None
    with contextlib.suppress(P2PNodeError):
        story.do(command, key=key)


def _request(story: Story, rng: Random, number: int) -> None:
    request_id, caller = f"r{number}", rng.choice(CALLERS)
    _attempt(
        story,
        serve(
            request_id,
            caller=caller,
            path=rng.choice(("lan", "wan", "relay")),
            network=f"net{rng.randrange(3)}",
            max_tokens=rng.choice((1, 1000, 2500)),
            plan_id=f"p{rng.randrange(5)}",
            model=f"bafk{rng.randrange(3)}",
            hold_ms=rng.choice((1000, 3_600_000)),
        ),
    )
    if request_id not in story.state.billing.holds:
        return
    if rng.random() < 0.3:
        _attempt(story, c.SettleUnit(request_id=request_id, unit=1, work=((rng.choice(CALLERS[1:]), 1),)))
    match rng.randrange(5):
        case 0:
            _attempt(story, c.FailRequest(request_id=request_id, code="stage_lost", message="gone"))
        case 1:
            pass  # left open: expires, or ends at the next start
        case _:
            work = tuple((rng.choice(CALLERS[1:]), rng.randrange(100)) for _ in range(3))
            tokens = rng.choice((0, 1, 700, 2400))
            _attempt(story, finish(request_id, completion_tokens=tokens, work=work))


def _command(story: Story, rng: Random, number: int) -> c.Command:
    peer = rng.choice(PEERS)
    plan_id = f"p{rng.randrange(8)}"
    guest = rng.choice([p for p in story.state.peers.peers if p.startswith("guest")] or ["none"])
    choices: list[c.Command] = [
        c.StartNode(version="2", platform="linux", device_name="desk"),
        c.StopNode(reason="evening"),
        c.CreateInvite(invite_id=f"i{number}", uses=2, expires_ms=story.now_ms + 10_000_000, label="x"),
        c.RevokeInvite(invite_id=next(reversed(story.state.invites.invites), "none")),
        c.AdmitPeer(peer=peer, device_name=peer[-5:], grant=b"g", admitted_by="me"),
        c.AdmitPeer(
            peer=f"guest{number}",
            device_name="guest",
            grant=b"g",
            admitted_by="me",
            invite_id=next(reversed(story.state.invites.invites), ""),
        ),
        c.RevokePeer(peer=guest, reason="lost"),
        c.ForgetPeer(peer=guest),
        c.RecordPeerSeen(peer=peer, device_name="", path=rng.choice(("lan", "wan")), version="1"),
        c.RecordPeerLost(peer=peer, reason="timeout"),
        c.RecordMeasurement(
            measured=facts.PeerMeasured(
                peer=peer,
                rtt_us=rng.randrange(10_000),
                bytes_per_s=10**9,
                memory_bytes=2**33,
                memory_free_bytes=2**32,
                flops_mega=1000,
                memory_bytes_per_s=10**10,
            )
        ),
        c.PauseDevice(),
        c.DrainDevice(),
        c.ResumeDevice(),
        c.ResumeDevice(),
        c.ResumeDevice(),
        c.ChangeSetting(key=f"s{rng.randrange(4)}", value=str(number)),
        c.CreateApiKey(key_id=f"key{rng.randrange(9)}", label="k", scopes=("use",)),
        c.RevokeApiKey(key_id=f"key{rng.randrange(3, 9)}"),
        c.AddModel(model=_model(rng.randrange(3))),
        c.RemoveModel(model="bafk2"),
        c.StoreShard(
            shard=facts.ShardStored(
                model="bafk0",
                content=f"bafs{rng.randrange(4)}",
                layer_first=number % 7,
                layer_end=number % 7 + 2,
                size_bytes=100,
                source=peer,
            )
        ),
        c.ProposePlan(
            plan=facts.PlanProposed(
                plan_id=plan_id,
                model=f"bafk{rng.randrange(3)}",
                mode="pipeline",
                stages=((story.state.node.peer, 0, 4), (story.state.node.peer, 4, 8)),
                tokens_per_s_milli=9000,
            )
        ),
        c.ActivatePlan(plan_id=plan_id, duration_ms=30),
        c.ActivatePlan(plan_id=plan_id),
        c.RejectPlan(plan_id=plan_id, peer=peer, reason="no"),
        c.AbandonPlan(plan_id=plan_id, reason="old"),
        c.TopUp(
            account=rng.choice(CALLERS[1:]), amount_microunits=3_000_000, idempotency_key=f"t{number % 50}"
        ),
        c.SetQuota(account="key1", limit_microunits=rng.randrange(9) * 10**6, period_ms=86_400_000),
        c.SetQuota(account="key1", limit_microunits=0, period_ms=0, unlimited=True),
    ]
    return rng.choice(choices)


def _model(number: int) -> facts.ModelAdded:
    return facts.ModelAdded(
        model=f"bafk{number}",
        name=f"tiny-{number}",
        architecture="llama",
        quantisation="Q8_0",
        size_bytes=8000,
        layer_count=8,
        source="file",
        context_length=512,
    )


def _fact(rng: Random, number: int) -> Event:
    peer, request_id = rng.choice(PEERS), f"r{rng.randrange(number + 1)}"
    return rng.choice(
        (
            facts.BlobRefused(content="bafs", peer=peer, reason="short"),
            facts.StageLost(
                request_id=request_id,
                plan_id="p1",
                peer=peer,
                layer_first=0,
                layer_end=4,
                position=9,
                reason="killed",
            ),
            facts.StageRecovered(
                request_id=request_id,
                plan_id="p2",
                detected_ms=1,
                replanned_ms=2,
                refilled_ms=3,
                resumed_ms=4,
                refilled_tokens=9,
            ),
            facts.EngineDied(model="bafk0", exit_code=-9, reason="killed"),
            facts.EngineRestarted(model="bafk0", attempt=1, duration_ms=30),
            facts.ConsoleCommandRun(verb="peers", command_commitment=HASH, exit_code=0, duration_ms=3),
            facts.CheckpointWitnessed(peer=peer, origin=f"p2pnode/{peer}", size=number, root=HASH),
            facts.WitnessReceived(peer=peer, size=number, root=HASH, cosignature="x"),
            facts.SubjectForgotten(subject="s", commitments=(HASH,)),
            facts.PeerEquivocated(peer=PEERS[4], origin="o", size_first=1, size_second=2, proof=b"p"),
            UnknownEvent(type_name="FromTheFuture", schema_version=1, data=b"\x80"),
        )
    )
