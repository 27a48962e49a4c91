"""Tensor frames: round trips, the published vectors, and every way a header or body can lie."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import frame as fr
from p2pnode.errors import LocalProtocolError, P2PNodeError, RemoteProtocolError
from p2pnode.frame import (
    DType,
    Frame,
    FrameReader,
    Kind,
    decode,
    decode_header,
    encode,
    pack_rows,
    pack_tokens,
)

VECTORS = json.loads((Path(__file__).parents[2] / "specs/vectors/tensors.json").read_text())
FIELDS = (
    "rows", "columns", "session", "epoch", "position_first", "wanted_first", "sequence", "request", "flags",
)  # fmt: skip


def parse(data: bytes) -> Frame:
    header = decode_header(data[: fr.HEADER_BYTES])
    return decode(header, data[fr.HEADER_BYTES :])


def described(frame: Frame) -> dict[str, object]:
    values: dict[str, object] = {name: getattr(frame, name) for name in FIELDS}
    return values | {
        "kind": frame.kind.name,
        "dtype": frame.dtype.name,
        "meta": dict(frame.meta),
        "payload": bytes(frame.payload).hex(),
    }


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_published_vectors(vector: dict[str, object]) -> None:
    """What specs/vectors/tensors.json says is what this codec does."""
    data = bytes.fromhex(str(vector["input"]))
    if vector["expect"] == "ok":
        frame = parse(data)
        assert described(frame) == vector["output"]
        assert b"".join(encode(frame)) == data
        return
    with pytest.raises(P2PNodeError) as caught:
        parse(data)
    assert caught.value.code == vector["expect"]


@given(
    rows=st.integers(0, 5),
    columns=st.sampled_from([32, 64]),
    dtype=st.sampled_from([DType.F32, DType.F16, DType.BF16, DType.Q8_0]),
    session=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**30),
    meta=st.dictionaries(st.text(max_size=8), st.integers(-5, 5) | st.text(max_size=8), max_size=3),
)
def test_round_trip(
    rows: int, columns: int, dtype: DType, session: int, position: int, meta: dict[str, int | str]
) -> None:
    """Whatever was encoded decodes to the same frame."""
    payload = bytes(range(256)) * 4
    frame = Frame(
        Kind.ROWS, dtype, rows, columns, session, (payload * 8)[: rows * fr.row_bytes(dtype, columns)],
        epoch=3, position_first=position, wanted_first=rows, sequence=7, request=9, flags=fr.FLAG_LAST, meta=meta,
    )  # fmt: skip
    assert described(parse(b"".join(encode(frame)))) == described(frame)
    assert frame.wanted == 0


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    """Random bytes are a protocol error, never anything else."""
    with pytest.raises(RemoteProtocolError):
        parse(data.ljust(fr.HEADER_BYTES, b"\0"))


@given(st.integers(0, 8 * fr.HEADER_BYTES - 1))
def test_one_flipped_bit_is_noticed(bit: int) -> None:
    """The header checksum covers every bit of a header."""
    data = bytearray(b"".join(encode(Frame(Kind.TOKENS, DType.I32, 1, 1, 5, pack_tokens([3])))))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteProtocolError):
        parse(bytes(data))


def test_the_payload_is_not_copied() -> None:
    """Encoding and decoding hand on views of the caller's buffers."""
    rows = np.arange(64, dtype=np.float32).reshape(2, 32)
    parts = encode(Frame(Kind.ROWS, DType.F32, 2, 32, 1, pack_rows(rows, DType.F32)))
    body = bytearray(parts[1])
    rows[0, 0] = 42.0
    assert parts[1].cast("f")[0] == 42.0
    frame = decode(decode_header(parts[0][: fr.HEADER_BYTES]), body)
    seen = fr.rows_f32(frame)
    body[:4] = np.float32(7.0).tobytes()
    assert seen[0, 0] == 7.0


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (Frame(Kind.ROWS, DType.F32, 1, 8, 1, b"x" * 31), "31 bytes"),
        (Frame(Kind.ROWS, DType.I32, 1, 8, 1, b"x" * 32), "without real values"),
        (Frame(Kind.ROWS, DType.Q8_0, 1, 33, 1, b""), "multiple of 32"),
        (Frame(Kind.TOKENS, DType.I32, 1, 2, 1, b"x" * 8), "one column"),
        (Frame(Kind.TOKENS, DType.I32, 1, 1, 2**64, b"x" * 4), "outside its range"),
        (Frame(Kind.TOKENS, DType.I32, 1, 1, 1, b"x" * 4, wanted_first=2), "wanted rows"),
        (Frame(Kind.TOKENS, DType.I32, 1, 1, 1, b"x" * 4, flags=128), "unknown flags"),
        (Frame(Kind.TOKENS, DType.I32, 1, 1, 1, b"x" * 4, position_first=2**31), "positions past"),
        (Frame(Kind.TOKENS, DType.I32, 1, 1, 1, b"x" * 4, meta={"a": "b" * 20_000}), "meta of"),
        (Frame(Kind.ERROR, DType.F32, 1, 0, 1), "with a payload"),
        (Frame(Kind.TOKENS, DType.I32, 9000, 1, 1), "9000 rows"),
        (Frame(Kind.ROWS, DType.F32, 1, 300_000, 1), "300000 columns"),
        (Frame(Kind.ROWS, DType.F32, 1, 8, 1, bytes(64 * 1024 * 1024 + 1)), "a payload of"),
    ],
)
def test_wrong_frames_are_not_sent(frame: Frame, words: str) -> None:
    """Our own mistakes stay here instead of confusing a peer."""
    with pytest.raises(LocalProtocolError, match=words):
        encode(frame)


def test_wrong_lengths_are_refused() -> None:
    """A header or body cut short is noticed before it is looked at."""
    data = b"".join(encode(Frame(Kind.TOKENS, DType.I32, 1, 1, 5, pack_tokens([3]))))
    with pytest.raises(RemoteProtocolError, match="header of 63"):
        decode_header(data[:63])
    with pytest.raises(RemoteProtocolError, match="body of 3"):
        decode(decode_header(data[:64]), data[64:67])


def with_meta(meta: bytes) -> bytes:
    """An error frame around meta bytes of any kind, checksums right."""
    head = bytearray(b"".join(encode(Frame(Kind.ERROR, DType.F32, 0, 0, 1))))
    head[52:56] = len(meta).to_bytes(4, "little")
    head[56:60] = zlib.crc32(meta).to_bytes(4, "little")
    head[60:64] = zlib.crc32(head[:60]).to_bytes(4, "little")
    return bytes(head) + meta


@pytest.mark.parametrize("meta", [b"\x93\x01\x02\x03", b"\x81\x01\x02", b"\xc1", b"\x81", b"\x80\x80"])
def test_meta_must_be_a_map_with_text_keys(meta: bytes) -> None:
    """Other msgpack, broken msgpack and trailing bytes are refused."""
    with pytest.raises(RemoteProtocolError, match="meta"):
        parse(with_meta(meta))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(DType.F32, 0.0), (DType.F16, 1e-3), (DType.BF16, 1e-2), (DType.Q8_0, 2e-2)]
)
def test_rows_survive_each_dtype(dtype: DType, tolerance: float) -> None:
    """Values come back within what the type can hold; a row of zeros stays zero."""
    rows = np.random.default_rng(1).standard_normal((4, 64), dtype=np.float32)
    rows[2] = 0.0
    back = fr.rows_f32(Frame(Kind.ROWS, dtype, 4, 64, 1, pack_rows(rows, dtype)))
    assert np.abs(back - rows).max() <= tolerance * np.abs(rows).max()
    assert not back[2].any()


def test_half_precision_saturates() -> None:
    """A value beyond float16 stays finite: an infinity would spread."""
    rows = np.full((1, 32), 1e9, np.float32)
    for dtype in (DType.F16, DType.Q8_0):
        assert np.isfinite(fr.rows_f32(Frame(Kind.ROWS, dtype, 1, 32, 1, pack_rows(rows, dtype)))).all()


def test_rows_are_not_token_ids() -> None:
    with pytest.raises(LocalProtocolError):
        pack_rows(np.zeros((1, 1), np.float32), DType.I32)


def test_tokens_round_trip() -> None:
    assert fr.tokens(Frame(Kind.TOKENS, DType.I32, 3, 1, 1, pack_tokens([1, -1, 2**31 - 1]))) == [
        1,
        -1,
        2**31 - 1,
    ]


async def test_reader_takes_frames_one_by_one() -> None:
    """FrameReader asks for exactly the bytes a frame has, bodies or none."""
    frames = [Frame(Kind.TOKENS, DType.I32, 1, 1, 5, pack_tokens([3])), Frame(Kind.ERROR, DType.F32, 0, 0, 6)]
    data = bytearray(b"".join(part for frame in frames for part in encode(frame)))

    async def read_exactly(count: int) -> bytes:
        taken = bytes(data[:count])
        del data[:count]
        return taken

    reader = FrameReader(read_exactly)
    assert [(await reader.read()).session for _ in frames] == [5, 6]
    assert not data
