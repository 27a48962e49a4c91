"""One row through a unit that was just loaded: are the taps where this llama.cpp was expected to have them?

llama.cpp names its tensors as it likes, from one version to the next. Whoever loads a part hears it then, and not
from the first answer that would need it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pnode.compute.llama_context import Context
from p2pnode.compute.taps import Taps


class _Alone:
    """No other rank is there yet; what comes out is nobody's."""

    def reduce(self, values: NDArray[np.float32]) -> None: ...


def try_taps(taps: Taps, context: Context, columns: int | None) -> None:
    """Rows of so many columns go in, None for token ids. Raises EngineIncompatible; leaves the memory empty."""
    context.tokens[0] = context.positions[0] = context.sequences[0] = 0
    context.wanted[0] = True
    rows: NDArray[Any] | None = None if columns is None else np.zeros((1, columns), np.float32)
    taps.reducer = _Alone()
    try:
        taps.start()
        context.decode(1, rows)
        taps.finish()
        taps.check(1)
    finally:
        taps.reducer, taps.rows = None, []
        context.forget_all()
