"""Unit specs of toy models and their cuts, and the frames to feed them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.gguf import ModelIndex, join, parse
from p2pnode.compute.part import Cut, Inline, Source, Zeros
from p2pnode.compute.virtual_file import FilePiece, InlinePiece, Piece
from p2pnode.facade import SamplingParams
from p2pnode.frame import DType, Frame, Kind, pack_tokens

SMALL: dict[str, Any] = {"context_tokens": 256, "batch_rows": 64, "sessions_max": 4, "threads": 1}
"""One thread: the machine that runs the tests may have few."""
GREEDY = SamplingParams(temperature=0.0)
WARM = SamplingParams(temperature=0.9, top_k=20, seed=7, repeat_penalty=1.2)
PROMPT = (1, 70, 80, 90, 100, 110, 120)


def tokens_frame(
    ids: Sequence[int], position: int = 0, *, session: int = 1, wanted: int | None = None, **fields: Any
) -> Frame:
    """Token ids whose last row is wanted unless `wanted` says from where."""
    first = len(ids) - 1 if wanted is None else wanted
    return Frame(
        Kind.TOKENS, DType.I32, len(ids), 1, session, pack_tokens(list(ids)),
        position_first=position, wanted_first=first, **fields,
    )  # fmt: skip


def pieces_of(made: Cut, path: Path) -> tuple[Piece, ...]:
    """A cut's pieces as the engine takes them."""
    out: list[Piece] = []
    for piece in made.all_pieces():
        match piece:
            case Inline(data):
                out.append(InlinePiece(data))
            case Zeros(total):
                out.append(InlinePiece(bytes(total)))
            case Source():
                out.append(FilePiece(str(path), piece.offset, piece.size, piece.count, piece.stride))
    return tuple(out)


def cut_spec(made: Cut, path: Path, **changes: Any) -> UnitSpec:
    """What a node says of a cut."""
    facts = made.facts
    return UnitSpec(
        **{
            **SMALL,
            "pieces": pieces_of(made, path),
            "input": facts.input,
            "output": "sample" if facts.output == "logits" else "rows",
            "tap": facts.tap,
            "input_scale": 1.0 / facts.row_scale,
            "reduce": facts.reduce,
            "fingerprint": facts.fingerprint,
            "stateless": made.part.layer_count == 0,
            **changes,
        }
    )


async def generate(
    engine: EngineClient,
    unit: int,
    prompt: Sequence[int],
    count: int,
    *,
    session: int = 1,
    ahead: bool = False,
) -> list[int]:
    """Sample `count` tokens after a prompt; the session was opened before."""
    sampled = await engine.step_sample(unit, tokens_frame(prompt, session=session), ahead=ahead)
    out = [sampled.token]
    while len(out) < count:
        frame = tokens_frame(out[-1:], len(prompt) + len(out) - 1, session=session)
        out.append((await engine.step_sample(unit, frame, ahead=ahead)).token)
    return out


def index_at(path: Path) -> ModelIndex:
    return join([parse(path.read_bytes())])
