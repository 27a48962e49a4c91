"""What is known, folded from the log: pure, replayable to any size, never stored but as a cache.

`initial`, `apply`, `snapshot`, `restore`, `state_hash` work on the whole `MeshState`; each module folds its
part. `views.view(state, name, now_ms)` and `billing_view` make what faces show.
"""

from p2pnode.projections.mesh_fold import MeshFold
from p2pnode.projections.state import (
    VERSIONS,
    MeshState,
    all_projections,
    apply,
    initial,
    restore,
    snapshot,
    state_hash,
)

__all__ = [
    "VERSIONS",
    "MeshFold",
    "MeshState",
    "all_projections",
    "apply",
    "initial",
    "restore",
    "snapshot",
    "state_hash",
]
