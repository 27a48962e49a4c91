"""Fetching parts from several holders: what comes is right, whatever they do."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from p2pnode import limits
from p2pnode.compute.gguf import open_model
from p2pnode.compute.part import Part
from p2pnode.compute.surgery import cut, needed_tensors
from p2pnode.errors import (
    BlobMismatch,
    DiskFull,
    ModelIncomplete,
    ModelUnknown,
    P2PNodeError,
    RemoteProtocolError,
    StreamReset,
)
from p2pnode.models import blob, cid
from p2pnode.models.blob_client import BlobClient, Holder
from p2pnode.models.exchange import FetchResult, fetch_manifest, fetch_part
from p2pnode.models.manifest import Want
from p2pnode.models.rate import RateLimit
from p2pnode.models.serve import BlobServer
from p2pnode.models.store import ModelStore
from p2pnode.transport.port import Stream
from tests.kit.blobs import Liar, Party, chunk

DEMO = Path(__file__).parents[2] / "models/p2pnode-demo.gguf"
SLICE = [Want("blk.1.attn_q.weight"), Want("blk.2.attn_q.weight"), Want("blk.2.attn_norm.weight")]


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "per_cent" not in request.node.name:
        monkeypatch.setattr(limits, "CHUNK_BYTES", 1024)
    monkeypatch.setattr(limits, "BLOB_STEAL_AFTER_S", 0.05)


@pytest.fixture
def party(tmp_path: Path) -> Party:
    return Party(tmp_path)


async def _fetch(party: Party, *holders: Holder, wants: list[Want] = SLICE, **options: object) -> FetchResult:
    party.store.add_manifest("toy", party.model.manifest)
    result = await fetch_part(party.model.manifest, wants, holders, party.store, **options)  # type: ignore[arg-type]
    _assert_right(party, wants)
    return result


def _assert_right(party: Party, wants: list[Want]) -> None:
    original = (party.folder / "toy.gguf").read_bytes()
    for piece in party.store.pieces(party.model.content_id, wants):
        assert piece.path.read_bytes()[piece.offset :][: piece.size] == original[piece.offset :][: piece.size]


async def test_only_the_slice_crosses_the_wire(party: Party) -> None:
    holder = party.holder("a")
    async with party.up():
        manifest = await fetch_manifest(party.model.content_id, [holder])
        assert manifest == party.model.manifest
        result = await _fetch(party, holder)
    assert result.bytes_wanted == 40_064
    frames = len(party.model.manifest.chunks_for(SLICE))
    assert result.bytes_on_wire < result.bytes_wanted + frames * 9 + 200


async def test_three_nodes_fetch_their_slices_and_one_per_cent(tmp_path: Path) -> None:
    """The demo model over a pipeline of three: manifest, framing and weights against the slice itself."""
    party = Party(tmp_path, DEMO)
    index, _ = open_model(DEMO)
    stages = [Part(3, 6), Part(6, 8)]
    holder = party.holder("a")
    async with party.up():
        for number, part in enumerate(stages):
            store = ModelStore(tmp_path / f"stage-{number}")
            manifest = await fetch_manifest(party.model.content_id, [holder])
            store.add_manifest("demo", manifest)
            wants = [Want(name) for name in needed_tensors(index, part)]
            result = await fetch_part(manifest, wants, [holder], store)
            on_wire = result.bytes_on_wire + len(manifest.encoded)
            assert on_wire <= 1.01 * cut(index, part).size
            again = await fetch_part(manifest, wants, [holder], ModelStore(tmp_path / f"stage-{number}"))
            assert again.bytes_on_wire == 0


async def test_a_second_fetch_and_a_restart_cost_nothing(party: Party) -> None:
    holder = party.holder("a")
    async with party.up():
        await _fetch(party, holder)
        party.store = ModelStore(party.folder / "fetcher")
        assert await _fetch(party, holder) == FetchResult()


async def test_the_vocabulary_comes_when_wanted(party: Party) -> None:
    holder = party.holder("a")
    everything = [Want(name) for name in party.model.manifest.tensors]
    seen: list[tuple[int, int]] = []
    async with party.up():
        await _fetch(party, holder, wants=everything, vocabulary=True, progress=lambda *p: seen.append(p))
    assert (
        party.store.paths(party.model.content_id)[0].read_bytes() == (party.folder / "toy.gguf").read_bytes()
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


async def test_all_holders_serve(party: Party) -> None:
    holders = [party.holder(name) for name in "abc"]
    async with party.up():
        result = await _fetch(party, *holders)
    assert set(result.chunks_by_peer) == {"a", "b", "c"}
    assert result.dropped == {}


async def test_a_partial_holder_gives_what_it_has(party: Party) -> None:
    """Devices with a slice serve their slice."""
    first, second = party.holder("a"), party.holder("b", store=party.store)
    other = ModelStore(party.folder / "third")
    async with party.up():
        await _fetch(party, first, wants=SLICE[:1])
        other.add_manifest("toy", party.model.manifest)
        result = await fetch_part(party.model.manifest, SLICE[:1], [second], other)
        assert set(result.chunks_by_peer) == {"b"}
        with pytest.raises(ModelIncomplete) as caught:
            await fetch_part(party.model.manifest, SLICE, [second], other)
    assert caught.value.details["missing_bytes"] == 20_064


async def test_a_slice_is_pieced_together_from_partial_holders(party: Party) -> None:
    stores = [ModelStore(party.folder / name) for name in "xy"]
    for store, want in zip(stores, SLICE, strict=False):
        store.add_manifest("toy", party.model.manifest)
        for index in party.model.manifest.chunks_for([want]):
            store.write_chunk(
                party.model.content_id, index, party.origin.read_chunk(party.model.content_id, index)
            )
        store.flush(party.model.content_id)
    holders = [party.holder(name, store=store) for name, store in zip("xy", stores, strict=True)]
    async with party.up():
        result = await _fetch(party, *holders, wants=SLICE[:2])
    assert result.chunks_by_peer == {"x": 20, "y": 20}


# --- liars -------------------------------------------------------------------------------------------
LIES = {
    "bad bytes": lambda n, i, data: chunk(i, bytes(len(data))),
    "bad bytes later": lambda n, i, data: chunk(i, data if n < 5 else bytes(len(data))),
    "short": lambda n, i, data: chunk(i, data[:-1]),
    "empty": lambda n, i, data: chunk(i, b""),
    "long": lambda n, i, data: chunk(i, data + b"x"),
    "longer than any chunk": lambda n, i, data: b"\x83\xff\xff\xff\xff" + data,
    "endless": lambda n, i, data: chunk(i, data) * 100,
    "other chunk": lambda n, i, data: chunk(i + 1, data),
    "unknown frame": lambda n, i, data: b"\x99\0\0\0\0",
    "end too early": lambda n, i, data: blob.frame(blob.END),
    "manifest instead": lambda n, i, data: blob.frame(blob.MANIFEST, data),
    "garbage": lambda n, i, data: b"\xff" * 64,
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_liar_costs_time_never_correctness(party: Party, lie: str) -> None:
    reports: list[tuple[str, P2PNodeError]] = []
    liar = party.holder("liar", Liar(party.origin, LIES[lie]))
    honest = party.holder("honest")
    async with party.up():
        result = await _fetch(party, liar, honest, report=lambda peer, error: reports.append((peer, error)))
    assert "liar" in result.dropped
    assert [peer for peer, _ in reports] == ["liar"]
    assert isinstance(reports[0][1], (BlobMismatch, RemoteProtocolError))


async def test_only_liars_is_a_clear_failure_and_keeps_what_was_right(party: Party) -> None:
    liar = party.holder("liar", Liar(party.origin, LIES["bad bytes later"]))
    honest = party.holder("honest")
    async with party.up():
        with pytest.raises(ModelIncomplete) as caught:
            await _fetch(party, liar)
        assert caught.value.details["missing_bytes"] == 40_064 - 5 * 1024
        assert caught.value.details["tried"][0][0] == "liar"
        result = await _fetch(party, honest)
    assert result.bytes_wanted == 40_064 - 5 * 1024


async def test_a_holder_that_falls_silent_is_overtaken(party: Party) -> None:
    silent = party.holder("silent", Liar(party.origin, lambda n, i, data: None if n == 2 else chunk(i, data)))
    honest = party.holder("honest")
    async with party.up():
        result = await _fetch(party, silent, honest)
    assert result.chunks_by_peer["honest"] > 30


async def test_a_holder_that_dies_midway_is_replaced(party: Party) -> None:
    def spoil(sent: int, index: int, data: bytes) -> bytes:
        if sent % 4 == 3:
            raise StreamReset("power cut")
        return chunk(index, data)

    dying = Liar(party.origin, spoil)
    holders = [party.holder("dying", dying), party.holder("honest")]
    async with party.up():
        result = await _fetch(party, *holders)
    assert dying.sent >= 3
    assert result.chunks_by_peer["honest"] > 20


async def test_a_lone_holder_that_stumbles_is_asked_again(party: Party) -> None:
    """A stream may break; the next one goes on where it ended."""
    dying = Liar(party.origin, lambda n, i, data: chunk(i, data))
    stumbled: set[int] = set()

    def spoil(sent: int, index: int, data: bytes) -> bytes:
        if sent in (20, 33) and sent not in stumbled:
            stumbled.add(sent)
            raise StreamReset("a hiccup")
        return chunk(index, data)

    dying.spoil = spoil
    holder = party.holder("dying", dying)
    async with party.up():
        result = await _fetch(party, holder)
    assert result.dropped == {}
    assert result.bytes_wanted == 40_064
    assert dying.sent <= len(party.model.manifest.chunks_for(SLICE)) + 32


async def test_a_silent_mesh_times_out(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BLOB_FRAME_TIMEOUT_S", 0.3)

    async def silent(stream: Stream) -> None:
        await asyncio.Event().wait()

    holder = party.holder("silent", silent)
    async with party.up():
        with pytest.raises(ModelIncomplete, match="could not be fetched"):
            await _fetch(party, holder)


async def test_nobody_there(party: Party) -> None:
    async def gone() -> Stream:
        raise ConnectionRefusedError

    async with party.up():
        with pytest.raises(ModelIncomplete):
            await _fetch(party, Holder("gone", gone))
        with pytest.raises(ModelIncomplete):
            await _fetch(party)
        with pytest.raises(ModelUnknown) as caught:
            await fetch_manifest(party.model.content_id, [Holder("gone", gone)])
    assert caught.value.details["tried"][0][0] == "gone"


async def test_a_full_disk_ends_the_fetch(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise DiskFull("no space")

    monkeypatch.setattr(party.store, "write_chunk", full)
    holder = party.holder("a")
    async with party.up():
        with pytest.raises(DiskFull):
            await _fetch(party, holder)


# --- manifests ---------------------------------------------------------------------------------------
async def test_a_false_manifest_is_refused_and_reported(party: Party, tmp_path: Path) -> None:
    async def lies(stream: Stream) -> None:
        await stream.read_exactly(5)
        await stream.write(
            blob.frame(blob.MANIFEST, party.model.manifest.encoded + b"x"), blob.frame(blob.END)
        )

    reports: list[str] = []
    liar, honest = party.holder("liar", lies), party.holder("honest")
    async with party.up():
        found = await fetch_manifest(
            party.model.content_id, [liar, honest], report=lambda peer, _e: reports.append(peer)
        )
    assert found == party.model.manifest
    assert reports == ["liar"]


@pytest.mark.parametrize(
    "reply", [blob.frame(blob.HAVE, b"x"), blob.frame(blob.END), b"\x81\xff\xff\xff\xff", b""]
)
async def test_an_answer_to_another_question_is_refused(party: Party, reply: bytes) -> None:
    async def lies(stream: Stream) -> None:
        await stream.read_exactly(5)
        await stream.write(reply or blob.frame(blob.MANIFEST, party.model.manifest.encoded) * 2)

    liar = party.holder("liar", lies)
    async with party.up():
        client = BlobClient(await liar.open_stream())
        with pytest.raises(RemoteProtocolError):
            await client.manifest(digest=cid.to_digest(party.model.content_id))
        client.abort()


async def test_manifests_by_name_and_unknown_ones(party: Party) -> None:
    holder = party.holder("a")
    async with party.up():
        client = BlobClient(await holder.open_stream())
        assert await client.manifest(name="toy") == party.model.manifest.encoded
        with pytest.raises(ModelUnknown):
            await client.manifest(name="nothing")
        with pytest.raises(ModelUnknown):
            await client.have(bytes(32))
        assert await client.have(cid.to_digest(party.model.content_id)) == party.origin.have(
            party.model.content_id
        )
        await client.close()
    assert party.servers["a"].counters.requests == 4


# --- serving -----------------------------------------------------------------------------------------
async def test_a_damaged_chunk_is_not_served(party: Party) -> None:
    """The holder finds it, says so and forgets it; nobody gets bad bytes."""
    with (party.folder / "toy.gguf").open("r+b") as file:
        stamp = (party.folder / "toy.gguf").stat()
        file.seek(party.model.manifest.tensors["blk.1.attn_q.weight"].offset)
        file.write(b"damage")
    os.utime(party.folder / "toy.gguf", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    holder = party.holder("a")
    async with party.up():
        with pytest.raises(ModelIncomplete):
            await _fetch(party, holder, wants=SLICE[:1])
    assert not party.origin.get("toy").is_complete


async def test_bad_requests_end_the_stream(party: Party) -> None:
    holder = party.holder("a")
    count = len(party.model.manifest.chunks)
    digest = cid.to_digest(party.model.content_id)
    bad = [
        b"\x09\0\0\0\0",
        b"\x01\xff\xff\xff\xff",
        blob.frame(1, b"\xc1"),
        blob.encode_request(blob.GetChunks(digest, ((count - 1, 2),))),
    ]
    async with party.up():
        for data in bad:
            stream = await holder.open_stream()
            await stream.write(data)
            with pytest.raises(P2PNodeError):
                await stream.read_exactly(1)
    assert party.servers["a"].counters.chunks == 0


async def test_streams_beyond_the_limit_are_refused(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BLOB_STREAMS_SERVED_MAX", 1)
    holder = party.holder("a")
    async with party.up():
        first = BlobClient(await holder.open_stream())
        await first.manifest(name="toy")
        second = BlobClient(await holder.open_stream())
        with pytest.raises((ModelIncomplete, P2PNodeError)):
            await second.manifest(name="toy")
        await first.close()
    assert party.servers["a"].counters.refused == 1


async def test_an_idle_stream_is_given_up(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BLOB_IDLE_TIMEOUT_S", 0.05)
    holder = party.holder("a")
    async with party.up():
        stream = await holder.open_stream()
        with pytest.raises(P2PNodeError):
            await stream.read_exactly(1)


async def test_the_rate_is_shared_and_kept() -> None:
    now, slept = 100.0, []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    rate = RateLimit(1000, clock=lambda: now, sleep=sleep)
    await rate.take(1000)
    await rate.take(500)
    await rate.take(500)
    assert slept == pytest.approx([0.5, 1.0])
    now += 10
    await rate.take(900)
    assert len(slept) == 2


async def test_a_limited_server_waits(party: Party) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    holder = party.holder("a")
    party.servers["a"].rate = RateLimit(10_000, clock=lambda: 0.0, sleep=sleep)
    async with party.up():
        await _fetch(party, holder)
    assert max(waited) > 2.9
    assert party.servers["a"].counters.bytes_sent > 40_064


async def test_waiting_for_a_holder_has_an_end(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BLOB_FRAME_TIMEOUT_S", 0.3)

    async def never() -> Stream:
        await asyncio.Event().wait()
        raise AssertionError

    party.store.add_manifest("toy", party.model.manifest)
    with pytest.raises(ModelIncomplete, match="could not"):
        await fetch_part(party.model.manifest, SLICE, [Holder("never", never)], party.store)
    with pytest.raises(ModelUnknown) as caught:
        await fetch_manifest(party.model.content_id, [Holder("never", never)])
    assert "no answer" in caught.value.details["tried"][0][1]


def test_a_server_starts_with_nothing_served(tmp_path: Path) -> None:
    assert BlobServer(ModelStore(tmp_path)).counters.bytes_sent == 0
