"""The tree: foreign vectors, exhaustive small trees, and every positive with its corrupted twin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import CorruptRecord
from p2pnode.events.merkle import (
    EMPTY_ROOT,
    TILE_BYTES,
    Edge,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_at,
    root_of,
    split_hashes,
    verify_consistency,
    verify_inclusion,
)

VECTORS = json.loads((Path(__file__).parents[3] / "specs" / "vectors" / "merkle.json").read_text())


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(v, id=v["name"]) for v in VECTORS if v["name"].startswith(kind + "/")]


def unhex(values: list[str]) -> list[bytes]:
    return [bytes.fromhex(value) for value in values]


def twins(values: list[bytes]) -> list[list[bytes]]:
    """Each hash flipped, dropped, doubled and swapped with the next."""
    changed = []
    for i, value in enumerate(values):
        changed.append([*values[:i], bytes([value[0] ^ 1]) + value[1:], *values[i + 1 :]])
        changed.append([*values[:i], *values[i + 1 :]])
        changed.append([*values[: i + 1], *values[i:]])
        if i and values[i] != values[i - 1]:
            changed.append([*values[: i - 1], values[i], values[i - 1], *values[i + 1 :]])
    return [*changed, [*values, bytes(32)], [*values, b""]]


def test_all_vectors_are_there() -> None:
    """98 of inclusion, 98 of consistency, 9 roots; nothing is left out."""
    assert [len(of_kind(kind)) for kind in ("inclusion", "consistency", "root")] == [99 - 1, 98, 9]


@pytest.mark.parametrize("vector", of_kind("inclusion"))
def test_inclusion_vectors(vector: dict[str, Any]) -> None:
    """transparency-dev's inclusion proofs, strict cases and all; then their corrupted twins."""
    given_ = vector["input"]
    leaf, root = bytes.fromhex(given_["leaf"]), bytes.fromhex(given_["root"])
    index, size, proof = given_["index"], given_["size"], unhex(given_["proof"])
    expected = vector["expect"] == "ok"
    assert verify_inclusion(leaf, index, size, proof, root) is expected
    if expected:
        assert not any(verify_inclusion(leaf, index, size, twin, root) for twin in twins(proof))
        assert not verify_inclusion(leaf, index, size, proof, root[:-1])
        assert not verify_inclusion(leaf[:-1], index, size, proof, root)
        assert not verify_inclusion(leaf, size, size, proof, root)
        assert not verify_inclusion(leaf, -1, size, proof, root)


@pytest.mark.parametrize("vector", of_kind("consistency"))
def test_consistency_vectors(vector: dict[str, Any]) -> None:
    """transparency-dev's consistency proofs; then their corrupted twins."""
    given_ = vector["input"]
    first, second = given_["size_first"], given_["size_second"]
    roots = bytes.fromhex(given_["root_first"]), bytes.fromhex(given_["root_second"])
    proof = unhex(given_["proof"])
    expected = vector["expect"] == "ok"
    assert verify_consistency(first, second, proof, *roots) is expected
    if expected:
        assert not any(verify_consistency(first, second, twin, *roots) for twin in twins(proof))
        assert not verify_consistency(first, second, proof, bytes(32), roots[1])
        assert not verify_consistency(first, second, proof, roots[0], bytes(32))
        assert not verify_consistency(-1, second, proof, *roots)


@pytest.mark.parametrize("vector", of_kind("root"))
def test_root_vectors(vector: dict[str, Any]) -> None:
    """The roots every RFC 6962 implementation agrees on."""
    leaves = [leaf_hash(entry) for entry in unhex(vector["input"]["entries"])]
    assert root_of(leaves).hex() == vector["output"]
    assert Tree(leaves).edge.root().hex() == vector["output"]


class Tree:
    """A whole tree in memory, as a tile reader."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.leaves, self.edge = leaves, Edge()
        self.tiles: dict[tuple[int, int], bytes] = {}
        for leaf in leaves:
            self.tiles.update({(level, index): tile for level, index, tile in self.edge.append(leaf)})

    def tile(self, level: int, index: int) -> bytes:
        return self.tiles.get((level, index)) or self.edge.partial(level, index)


def recursive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1 to the letter."""
    if len(leaves) < 2:
        return leaves[0] if leaves else EMPTY_ROOT
    k = 1 << ((len(leaves) - 1).bit_length() - 1)
    return node_hash(recursive_root(leaves[:k]), recursive_root(leaves[k:]))


LEAVES = [leaf_hash(b"%d" % number) for number in range(70_000)]


def test_every_proof_of_small_trees() -> None:
    """All sizes to 40, all leaves and all older sizes: each proof holds, for nothing else."""
    tree = Tree(LEAVES[:40])
    roots = [recursive_root(LEAVES[:size]) for size in range(41)]
    for size in range(1, 41):
        assert root_at(tree, size) == roots[size]
        for index in range(size):
            proof = inclusion_proof(tree, index, size)
            assert verify_inclusion(LEAVES[index], index, size, proof, roots[size])
            assert not verify_inclusion(LEAVES[index + 1], index, size, proof, roots[size])
            assert not verify_inclusion(LEAVES[index], index, size, proof, roots[size - 1])
        for older in range(1, size + 1):
            proof = consistency_proof(tree, older, size)
            assert verify_consistency(older, size, proof, roots[older], roots[size])
            assert older == size or not verify_consistency(older, size, proof, roots[older - 1], roots[size])


@pytest.fixture(scope="module")
def large() -> Tree:
    return Tree(LEAVES)


@pytest.mark.parametrize("size", [255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 70_000])
def test_tile_borders(large: Tree, size: int) -> None:
    """Across the borders of tiles of both levels, loading an edge again included."""
    root = root_of(LEAVES[:size])
    assert root_at(large, size) == root
    assert Edge.load(large, size).root() == root
    for index in {0, 1, size // 2, size - 2, size - 1, (size - 1) // 256 * 256}:
        assert verify_inclusion(LEAVES[index], index, size, inclusion_proof(large, index, size), root)


@given(st.integers(1, 70_000), st.data())
def test_any_size_any_leaf(large: Tree, size: int, data: st.DataObject) -> None:
    """Proofs from tiles hold for any place in any tree."""
    index = data.draw(st.integers(0, size - 1))
    root = root_at(large, size)
    assert verify_inclusion(LEAVES[index], index, size, inclusion_proof(large, index, size), root)
    older = index + 1
    proof = consistency_proof(large, older, size)
    assert verify_consistency(older, size, proof, root_at(large, older), root)


@given(st.integers(0, 1200), st.integers(0, 600))
def test_an_edge_goes_on_where_it_was_loaded(size: int, more: int) -> None:
    """Loading from tiles and appending gives the tiles and root of one that never stopped."""
    tree = Tree(LEAVES[:size])
    edge = Edge.load(tree, size)
    made = [tile for leaf in LEAVES[size : size + more] for tile in edge.append(leaf)]
    whole = Tree(LEAVES[: size + more])
    assert edge.root() == whole.edge.root()
    assert edge.upper() == whole.edge.upper()
    assert all(whole.tiles[level, index] == tile for level, index, tile in made)


def test_missing_or_short_tiles_are_noticed(large: Tree) -> None:
    """Never a wrong root in silence."""

    class Broken:
        def __init__(self, level: int, index: int, kept: int) -> None:
            self.place, self.kept = (level, index), kept

        def tile(self, level: int, index: int) -> bytes:
            found = large.tile(level, index)
            return found[: self.kept] if (level, index) == self.place else found

    for place in ((0, 5, 0), (0, 5, TILE_BYTES - 32), (0, 273, 32), (1, 0, 64)):
        with pytest.raises(CorruptRecord):
            Edge.load(
                Broken(*place),
                70_000 if place[0] == 0 and place[1] != 5 else 2_000 if place[0] == 0 else 2**17,
            )
    with pytest.raises(CorruptRecord):
        inclusion_proof(Broken(0, 0, 64), 0, 256)
    assert split_hashes(large.tile(1, 1))[0] == root_of(LEAVES[65_536 : 65_536 + 256])
