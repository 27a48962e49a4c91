"""What `p2pnode plan` was asked, as the API takes it: names, caps, pins, maps and engine options from words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from p2pnode.config import parse_size
from p2pnode.errors import RequestError


def names_of(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def parse_engine(words: Sequence[str]) -> dict[str, str]:
    """`kv=q8_0` as the API takes it; what the words mean is the node's business."""
    found: dict[str, str] = {}
    for word in " ".join(words).split():
        name, equals, value = word.partition("=")
        if word == "default":
            continue
        if not equals or name in found:
            raise RequestError(f"{word!r} is no engine option", hint="write for example --engine kv=q8_0")
        found[name] = value
    return found


def parse_blocks(text: str) -> list[tuple[str, int, int]]:
    """`kitchen:0-3,study:4-7` as [device, first layer, end layer]: the last layer is said, as people count."""
    blocks = []
    for part in text.split(","):
        name, colon, layers = part.strip().rpartition(":")
        first, _, last = layers.partition("-")
        last = last or first
        if not colon or not first.isdecimal() or not last.isdecimal() or int(last) < int(first):
            raise RequestError(
                f"{part.strip()!r} is no block", hint="write for example kitchen:0-3,study:4-7"
            )
        blocks.append((name, int(first), int(last) + 1))
    return blocks


def read_blocks(path: Path) -> list[tuple[str, int, int]]:
    """A map by hand from a TOML file: `[[blocks]]` with `device` and `layers = [first, end]`."""
    from p2pnode.compute.layout import read_map  # loads numpy's neighbours; most commands need none of it

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the map {path} cannot be read: {error}") from error
    return list(read_map(text))


def parse_pins(words: Sequence[str]) -> dict[str, tuple[int, int]]:
    """`kitchen:0-3`: layers that a device must compute, whatever else it does."""
    found: dict[str, tuple[int, int]] = {}
    for name, first, end in parse_blocks(",".join(words)) if words else []:
        if name in found:
            raise RequestError(f"{name} is pinned twice", hint="one range for each device")
        found[name] = (first, end)
    return found


def parse_caps(words: Sequence[str]) -> dict[str, int]:
    """`kitchen=2G`: memory that a device may use for this plan."""
    found: dict[str, int] = {}
    for word in words:
        name, equals, size = word.rpartition("=")
        if not equals or not name or name in found:
            raise RequestError(
                f"{word!r} is no limit of memory", hint="write for example --max-memory kitchen=2G"
            )
        found[name] = parse_size(size)
    return found
