"""Settings there are, and what each may be: a mistyped one is refused instead of kept in the record without effect."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

from p2pnode.compute import care, elsewhere, other_meshes
from p2pnode.errors import RequestError
from p2pnode.node import auto_mode, backends, books, lending
from p2pnode.node.bringing import PREFIXES, prefix_bytes_of
from p2pnode.node.engine_settings import DEVICE, MODEL
from p2pnode.node.layer_rates import TIMING, TIMING_WORDS
from p2pnode.projections.views import DEFAULT_MODEL_SETTING

_SWITCH: Final = ("on", "off")
_WORDS: Final[dict[str, tuple[str, ...]]] = {
    **care.WORDS,
    elsewhere.SETTING: elsewhere.WORDS,
    other_meshes.SETTING: other_meshes.WORDS,
    auto_mode.SETTING: _SWITCH,
    backends.DISCOVER: _SWITCH,
    TIMING: TIMING_WORDS,
}
"""Those that are one of some words."""
_OTHERS: Final = (DEFAULT_MODEL_SETTING, PREFIXES, DEVICE, lending.SETTING, books.KEEP_TEXTS)


def check(key: str, value: str) -> None:
    """Raises: RequestError for a setting there is not, or a value it cannot have."""
    known = sorted((*_WORDS, *_OTHERS))
    if key not in known and not key.startswith(MODEL):
        near = get_close_matches(key, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise RequestError(
            f"there is no setting {key!r}{meant}",
            hint=f"there are {', '.join(known)} and {MODEL}MODEL (docs/settings.md)",
            param="key",
        )
    if key == PREFIXES:
        prefix_bytes_of(value)
    if value not in _WORDS.get(key, (value,)):
        raise RequestError(f"{key} is one of {', '.join(_WORDS[key])}, not {value!r}", param="value")
