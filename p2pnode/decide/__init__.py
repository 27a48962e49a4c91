"""(state, command, now) -> facts and an answer, or a condition: every rule of the mesh, without effects.

Runs in the log's writer, against a state that holds everything before it. Deterministic: ids and
commitments come with the command.
"""

from __future__ import annotations

from typing import Final

from p2pnode.commands import Command
from p2pnode.decide import credit, mesh, receipts, requests, work
from p2pnode.decide.outcome import Deciders
from p2pnode.decide.price import divide, parts_of_share, price_microunits
from p2pnode.decide.receipts import StageWork, draft_receipts, fact_bytes, may_compute
from p2pnode.events.log import Decision
from p2pnode.projections import MeshState

__all__ = [
    "StageWork",
    "decide",
    "divide",
    "draft_receipts",
    "fact_bytes",
    "may_compute",
    "parts_of_share",
    "price_microunits",
]

_TABLE: Final[Deciders] = {
    **mesh.DECIDERS,
    **work.DECIDERS,
    **requests.DECIDERS,
    **credit.DECIDERS,
    **receipts.DECIDERS,
}


def decide(state: MeshState, command: Command, now_ms: int) -> Decision:
    """Facts to record and the caller's answer, a JSON-able dict (but for `grant` bytes).

    Raises: a condition of errors.py; then nothing is recorded.
    """
    return _TABLE[type(command)](state, command, now_ms)
