"""Make specs/vectors/surgery.json: `python -m tests.kit.surgery_vectors`. The test compares, it never writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from p2pnode.compute.gguf import ValueType, header_bytes, join, parse, scalar
from p2pnode.compute.part import Cut, Inline, Part, Shard, Source, Zeros
from p2pnode.compute.surgery import cut
from p2pnode.errors import P2PNodeError
from tests.kit.toy_models import Toy, model_bytes

PATH = Path(__file__).parents[2] / "specs" / "vectors" / "surgery.json"
TOY = Toy("llama", layers=3, width=32, heads=2, kv_heads=2, ff=64, vocabulary=8)
MODEL = model_bytes(TOY)
HEADER = MODEL[: parse(MODEL).header_size]


def part_json(part: Part) -> dict[str, Any]:
    out: dict[str, Any] = {
        "layer_first": part.layer_first,
        "layer_end": part.layer_end,
        "embedding": part.embedding,
        "output": part.output,
    }
    if part.shard is not None:
        out["shard"] = {"rank": part.shard.rank, "shares": list(part.shard.shares)}
    return out


def part_of(value: dict[str, Any]) -> Part:
    shard = value.get("shard")
    return Part(
        value["layer_first"],
        value["layer_end"],
        value["embedding"],
        value["output"],
        Shard(shard["rank"], tuple(shard["shares"])) if shard else None,
    )


def cut_json(made: Cut) -> dict[str, Any]:
    pieces: list[Any] = []
    for piece in made.pieces:
        match piece:
            case Source():
                pieces.append(["source", piece.file, piece.offset, piece.size, piece.count, piece.stride])
            case Inline():
                pieces.append(["inline", piece.data.hex()])
            case Zeros():
                pieces.append(["zeros", piece.total])
    facts = made.facts
    return {
        "header": made.header.hex(),
        "pieces": pieces,
        "size": made.size,
        "tap": facts.tap,
        "reduce": list(facts.reduce),
        "row_scale": facts.row_scale,
        "fingerprint": facts.fingerprint,
    }


def answer(header: bytes, file_size: int, part: Part) -> tuple[str, dict[str, Any] | None]:
    """What an implementation says: `ok` and the cut, or the code of the refusal."""
    try:
        return "ok", cut_json(cut(join([parse(header, file_size)]), part))
    except P2PNodeError as refused:
        return refused.code, None


def _cases() -> list[tuple[str, str, bytes, int, Part]]:
    size = len(MODEL)
    head = Part(0, 1, embedding=True)
    no_name = header_bytes([scalar("general.name", ValueType.STRING, "x")], [], 32)[0]
    good = [
        ("whole", "the file itself", HEADER, size, Part(0, 3, embedding=True, output=True)),
        ("head", "tokens in, rows out", HEADER, size, head),
        ("middle", "rows in, rows out; no vocabulary", HEADER, size, Part(1, 2)),
        (
            "tail",
            "rows in, logits out; the output matrix takes the embedding's name",
            HEADER,
            size,
            Part(2, 3, output=True),
        ),
        ("output alone", "one inert layer of zeros", HEADER, size, Part(3, 3, output=True)),
        ("shard", "rank 1 of 2: strided columns", HEADER, size, Part(0, 3, shard=Shard(1, (1, 1)))),
    ]
    bad = [
        ("empty file", "", b"", 0, head),
        ("not GGUF", "a zip file", b"PK\x03\x04" + HEADER[4:], size, head),
        ("big-endian", "", HEADER[:4] + HEADER[4:8][::-1] + HEADER[8:], size, head),
        ("version 1", "", HEADER[:4] + b"\x01\0\0\0" + HEADER[8:], size, head),
        (
            "absurd tensor count",
            "refused before anything is allocated",
            HEADER[:8] + b"\xff" * 8 + HEADER[16:],
            size,
            head,
        ),
        ("absurd entry count", "", HEADER[:16] + b"\xff" * 8 + HEADER[24:], size, head),
        ("header cut short", "", HEADER[: len(HEADER) // 2], size, head),
        ("file cut short", "a tensor ends behind the file", HEADER, size - 4096, head),
        ("no architecture", "", no_name, len(no_name), head),
        ("architecture not proved", "it runs whole only", HEADER.replace(b"llama", b"lama2"), size, head),
        ("layers past the end", "", HEADER, size, Part(1, 4)),
        ("layers in reverse", "", HEADER, size, Part(2, 1)),
        ("embedding in the middle", "", HEADER, size, Part(1, 2, embedding=True)),
        ("output before the end", "", HEADER, size, Part(1, 2, output=True)),
        ("nothing", "no layers and no output", HEADER, size, Part(1, 1)),
        ("rank outside the group", "", HEADER, size, Part(0, 3, shard=Shard(2, (1, 1)))),
        ("more ranks than heads", "", HEADER, size, Part(0, 3, shard=Shard(0, (1, 1, 1)))),
    ]
    return good + bad


def vectors() -> list[dict[str, Any]]:
    out = []
    for name, comment, header, size, part in _cases():
        expect, output = answer(header, size, part)
        given = {"header": header.hex(), "file_size": size, "part": part_json(part)}
        out.append({"name": name, "comment": comment, "expect": expect, "input": given, "output": output})
    return out


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
