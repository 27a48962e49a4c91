"""Trees with a signed checkpoint of every size, honest ones and ones that part from them."""

from __future__ import annotations

from p2pnode.events.fraud import Signed
from p2pnode.events.keys import LogKeys
from p2pnode.events.merkle import Edge, consistency_proof, leaf_hash
from p2pnode.events.note import Checkpoint, Note, sign_note
from p2pnode.events.types import KeysBound
from p2pnode.events.witness import AddCheckpoint
from tests.kit.log_events import node_identity

KEYS = LogKeys.derive(node_identity(1))
BINDING = KEYS.bound()


class Tree:
    """Leaves with checkpoints of every size, signed by KEYS."""

    def __init__(self, size: int, fork_at: int | None = None) -> None:
        edge = Edge()
        self.tiles: dict[tuple[int, int], bytes] = {}
        self.leaves = b""
        self.roots = [edge.root()]
        for number in range(size):
            forked = fork_at is not None and number >= fork_at
            leaf = leaf_hash(b"%d %d" % (number, forked))
            self.leaves += leaf
            self.tiles.update({(level, index): tile for level, index, tile in edge.append(leaf)})
            self.roots.append(edge.root())
        self.edge = edge

    def tile(self, level: int, index: int) -> bytes:
        if level == 0:
            return self.leaves[index * 8192 : (index + 1) * 8192]
        return self.tiles.get((level, index)) or self.edge.partial(level, index)

    def note(self, size: int, keys: LogKeys = KEYS) -> str:
        text = Checkpoint(keys.origin, size, self.roots[size]).text()
        return str(Note(text, (sign_note(text, keys.origin, keys.log),)))

    def signed(self, size: int, binding: KeysBound = BINDING) -> Signed:
        return Signed(self.note(size), binding)

    def request(self, old: int, new: int) -> AddCheckpoint:
        proof = consistency_proof(self, old, new) if old else []
        return AddCheckpoint(old, proof, self.note(new))
