"""What an engine checks before llama.cpp sees it, without a process: pieces, sampling settings, messages, states."""

from __future__ import annotations

import math
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.compute import kv_state
from p2pnode.compute.engine_gather import Gather
from p2pnode.compute.engine_protocol import (
    PREFIX,
    Adapter,
    LaneToRank,
    Sampled,
    SampledToken,
    StreamToRank,
    Timings,
    TokenTable,
    UnitSpec,
    decode_header,
    decode_prefix,
    encode_message,
    error_fields,
    error_of,
    frame_fields,
    frame_of,
    spec_of,
)
from p2pnode.compute.sampling import SEED_DEFAULT, SEED_MAX, params_as_message, plan_sampler
from p2pnode.compute.virtual_file import CookieFile, FilePiece, InlinePiece, PieceReader, joined_file
from p2pnode.errors import (
    BadModelFile,
    EngineUnavailable,
    P2PNodeError,
    RemoteProtocolError,
    RequestError,
    SessionLost,
    ShapeMismatch,
)
from p2pnode.facade import SamplingParams
from p2pnode.frame import DType, Frame, Kind


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(bytes(range(256)) * 8)
    return path


# --- virtual files ---------------------------------------------------------------------------------
def test_pieces_read_like_one_file(source: Path) -> None:
    """Ranges, repeated ranges and inline bytes join without a seam, read in any size."""
    data = source.read_bytes()
    pieces = [
        InlinePiece(b"head"),
        FilePiece(str(source), 10, 20),
        FilePiece(str(source), 0, 3, 5, 100),
        InlinePiece(b""),
    ]
    expected = b"head" + data[10:30] + b"".join(data[100 * n : 100 * n + 3] for n in range(5))
    reader = PieceReader(pieces)
    assert reader.size == len(expected)
    for size in (1, 2, 7, 1000):
        out = bytearray()
        buffer = bytearray(size)
        while got := reader.read_into(len(out), memoryview(buffer)):
            out += buffer[:got]
        assert out == expected
    path, descriptor = joined_file(reader)
    assert path.read_bytes() == expected
    os.close(descriptor)
    reader.close()


def test_a_c_file_serves_the_pieces(source: Path) -> None:
    """fread and fseek of the C library see the joined bytes."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.fread.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    libc.fseek.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_int]
    libc.ftell.argtypes = [ctypes.c_void_p]
    reader = PieceReader([InlinePiece(b"abc"), FilePiece(str(source), 0, 1000)])
    with CookieFile(reader) as file:
        buffer = ctypes.create_string_buffer(8)
        assert libc.fread(buffer, 1, 5, file) == 5
        assert buffer.raw[:5] == b"abc\x00\x01"
        assert libc.fseek(file, -2, 2) == 0
        assert libc.ftell(file) == 1001
        assert libc.fread(buffer, 1, 8, file) == 2
        assert libc.fseek(file, -5000, 0) != 0
    reader.close()


@pytest.mark.parametrize(
    "piece", [("x", 2040, 9, 1, 0), ("x", -1, 4, 1, 0), ("x", 0, 4, 3, 1100), ("missing", 0, 1, 1, 0)]
)
def test_pieces_outside_their_file_are_refused(source: Path, piece: tuple[str, int, int, int, int]) -> None:
    """A truncated download is told before llama.cpp reads it."""
    path = str(source) if piece[0] == "x" else str(source) + ".missing"
    with pytest.raises(BadModelFile):
        PieceReader([FilePiece(path, *piece[1:])])


def test_a_file_that_shrinks_is_noticed(source: Path) -> None:
    """Reads past the new end give what there is, and joining refuses it."""
    reader = PieceReader([FilePiece(str(source), 0, 2048)])
    os.truncate(source, 100)
    assert reader.read_into(200, memoryview(bytearray(10))) == 0
    with pytest.raises(BadModelFile, match="shorter"):
        joined_file(reader)
    reader.close()


def test_no_pieces_are_no_model() -> None:
    with pytest.raises(BadModelFile):
        PieceReader([])


# --- sampling --------------------------------------------------------------------------------------
def plan(**changes: Any) -> Any:
    return plan_sampler({**params_as_message(SamplingParams()), **changes}, 100)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", "hot"), ("temperature", True),
        ("top_p", 1.5), ("min_p", -1), ("typical_p", math.inf), ("top_k", -2), ("repeat_penalty", 0),
        ("presence_penalty", 1e9), ("frequency_penalty", None), ("repeat_last_tokens", 10**6),
        ("seed", 1.5), ("grammar", b"root"), ("grammar", "a\0b"), ("grammar", "x" * 300_000),
        ("logprobs", -1), ("logprobs", 1000), ("logprobs", 1.0),
        ("logit_bias", [[100, 1.0]]), ("logit_bias", [[-1, 1.0]]), ("logit_bias", [[1, math.nan]]),
        ("logit_bias", [["a", 1.0]]), ("logit_bias", [[1, 1.0]] * 5000),
    ],
)  # fmt: skip
def test_wrong_sampling_values_are_named(name: str, value: Any) -> None:
    """Each bad value is a request error that names it."""
    with pytest.raises(RequestError):
        plan(**{name: value})


@given(
    seed=st.none() | st.integers(-(2**70), 2**70), temperature=st.floats(0, 100), last=st.integers(-1, 8192)
)
def test_any_seed_and_temperature_in_range_work(seed: int | None, temperature: float, last: int) -> None:
    """Seeds of any size become one of llama.cpp's, never its "choose one yourself"."""
    made = plan(seed=seed, temperature=temperature, repeat_last_tokens=last)
    assert 0 <= made.seed <= SEED_MAX
    assert made.greedy == (temperature < 1e-5)
    assert made.repeat_last_tokens >= 0
    assert not made.penalises


def test_defaults_keep_their_meaning() -> None:
    made = plan(seed=None, logit_bias=[[3, -5]], repeat_penalty=1.1, grammar="")
    assert (made.seed, made.logit_bias, made.grammar, made.penalises) == (
        SEED_DEFAULT,
        ((3, -5.0),),
        None,
        True,
    )


# --- messages --------------------------------------------------------------------------------------
def test_a_unit_spec_survives_the_socket(source: Path) -> None:
    """Everything an engine is told arrives as it was said."""
    spec = UnitSpec(
        pieces=(InlinePiece(b"abc"), FilePiece("f", 1, 2, 3, 4), InlinePiece(b"de")),
        token_table=TokenTable("t", 1, 2, 3, 4, 0.5),
        adapters=(Adapter("l", 0.25),),
        reduce=("attn_out-0",),
        rank=1,
        ranks=2,
    )
    parts = encode_message({"spec": spec.as_message()[0]}, spec.as_message()[1])
    header_bytes, payload_bytes = decode_prefix(parts[0])
    values = decode_header(bytes(parts[0])[PREFIX.size :])
    assert (header_bytes, payload_bytes) == (len(bytes(parts[0])) - PREFIX.size, 5)
    assert spec_of(values["spec"], parts[1]) == spec
    values["spec"]["pieces"] = [1] * 70_000
    with pytest.raises(RequestError):
        spec_of(values["spec"], b"")


@pytest.mark.parametrize(
    "prefix", [b"XXXX" + bytes(12), PREFIX.pack(b"P2PE", 2**31, 0), PREFIX.pack(b"P2PE", 1, 2**63)]
)
def test_a_mad_engine_is_not_believed(prefix: bytes) -> None:
    """Sizes are checked before anything is allocated for them."""
    with pytest.raises(EngineUnavailable):
        decode_prefix(prefix)


@pytest.mark.parametrize("data", [b"\xc1", b"\x91\x01", b"\x81"])
def test_broken_headers_are_refused(data: bytes) -> None:
    with pytest.raises(EngineUnavailable):
        decode_header(data)


def test_conditions_cross_the_border() -> None:
    """The same class comes out, with message, hint and details; an unknown code is still a condition."""
    error = error_of(error_fields(SessionLost("gone", hint="replay", position=4)))
    assert isinstance(error, SessionLost)
    assert (error.message, error.hint, error.details) == ("gone", "replay", {"position": 4})
    assert isinstance(error_of({"code": "brand_new"}), P2PNodeError)


def test_frames_cross_the_border() -> None:
    frame = Frame(Kind.TOKENS, DType.I32, 1, 1, 2**63, b"abcd", 1, 2, 0, 3, 4, 1, {"draft": [1]})
    assert frame_of(frame_fields(frame), b"abcd") == frame


def test_the_last_sampled_token_is_the_answer() -> None:
    sampled = Sampled((SampledToken(1, b"a", is_eog=False), SampledToken(2, b"b", is_eog=True)), Timings())
    assert (sampled.token, sampled.piece, sampled.is_eog) == (2, b"b", True)


# --- key-value states ------------------------------------------------------------------------------
def test_a_state_goes_only_where_it_belongs() -> None:
    data = kv_state.pack("model|f16", 5, b"blob")
    assert kv_state.unpack("model|f16", data) == (5, b"blob")
    with pytest.raises(ShapeMismatch):
        kv_state.unpack("model|q8_0", data)


@given(st.data())
def test_a_damaged_state_is_refused(data: st.DataObject) -> None:
    """Any flipped bit, any missing tail: a condition, never a blob handed on."""
    state = kv_state.pack("model", 5, bytes(40))
    bit = data.draw(st.integers(0, len(state) * 8 - 1))
    if bit // 8 in (5, *range(8, 12)):
        bit = 0  # reserved byte and position count: checked by the unit against llama.cpp
    broken = bytearray(state)
    broken[bit // 8] ^= 1 << bit % 8
    with pytest.raises((RemoteProtocolError, ShapeMismatch)):
        kv_state.unpack("model", broken)
    with pytest.raises(RemoteProtocolError):
        kv_state.unpack("model", state[: data.draw(st.integers(0, len(state) - 1))])


def blob(
    positions: int = 3, layers: int = 2, *, streams: int = 1, ids: int = 1, transposed: int = 0
) -> bytes:
    """A state as llama.cpp writes it, rows of four bytes."""
    out = struct.pack("<IiII", 0x67, 0, streams, positions)
    out += b"".join(struct.pack("<iIi", position, ids, 0) for position in range(positions))
    out += struct.pack("<II", transposed, layers)
    for number in range(2 * layers):
        out += struct.pack("<iQ", 1, 4) + bytes([number % 256]) * 4 * positions
    return out


def test_states_are_cut_by_layers_and_positions() -> None:
    state = kv_state.take_apart(blob())
    assert state.build() == blob()
    assert state.layers(0, 1).joined([state.layers(1, 2)]) == state
    assert len(state.positions(2).cells) == 2
    for wrong in (lambda: state.layers(1, 1), lambda: state.layers(0, 3), lambda: state.positions(4)):
        with pytest.raises(ShapeMismatch):
            wrong()
    with pytest.raises(ShapeMismatch):
        state.joined([state.positions(2)])


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        blob()[:-1],
        blob() + b"x",
        blob(streams=2),
        blob(ids=2),
        blob(transposed=1),
        blob(layers=5000)[:200],
    ],
)
def test_states_of_other_layouts_are_not_cut(wrong: bytes) -> None:
    with pytest.raises(ShapeMismatch):
        kv_state.take_apart(wrong)


# --- gathering -------------------------------------------------------------------------------------
def test_sessions_that_ran_lately_are_waited_for() -> None:
    """A round split into one and three is remembered as four; who is gone or slow is not waited for."""
    gather = Gather()
    assert not gather.missing({1})
    gather.ran([1], 0.01)
    gather.ran([2, 3, 4], 0.01)
    assert gather.missing({1})
    assert gather.missing({2, 3, 4})
    gather.forget(1)
    assert not gather.missing({2, 3, 4})
    gather.ran([2], 0.01)
    gather.ran([2], 0.01)
    assert not gather.missing({2})


def test_stages_share_sessions_out() -> None:
    """As many batches as stages, however the sessions first came; rows of one session are no reason to wait."""
    gather = Gather()
    assert gather.rows_max is None
    gather.share_among(2)
    assert gather.rows_max == 1
    for session in (1, 2, 3, 4):
        gather.ran([session], 0.01)
    assert gather.rows_max == 2
    assert gather.missing({1})
    assert not gather.missing({1, 2})
    gather.ran([1, 2], 0.01)
    gather.ran([3, 4], 0.01)
    assert gather.rows_max == 2
    for session in (2, 3, 4):
        gather.forget(session)
    assert gather.rows_max == 1
    assert not gather.missing({1})


def test_waiting_is_short_and_given_up_where_it_does_not_pay() -> None:
    gather = Gather()
    assert gather.wait_s() == 0.0
    gather.ran([1, 2], 0.01)
    assert gather.wait_s() == pytest.approx(0.0005)
    gather.ran([1, 2], 10.0)
    assert gather.wait_s() == pytest.approx(0.002)
    waits = 0
    for _ in range(100):
        if gather.wait_s():
            waits += 1
            gather.waited(came=False)
    assert waits < 10
    while not gather.wait_s():
        pass
    gather.waited(came=True)
    assert gather.wait_s() > 0


def test_links_are_said_in_few_words() -> None:
    ours, theirs = socket.socketpair()
    assert StreamToRank(2, ours).as_message() == [2, "stream"]
    assert LaneToRank(1, 5, "h", 6, bytes(32), 1452).as_message() == [1, "lane", 5, "h", 6, 1452]
    ours.close()
    theirs.close()
