"""Nodes of llama.cpp's graph that a tap wants: the compiled way and the one in Python agree about every node."""

from collections.abc import Iterator
from contextlib import contextmanager

from p2pnode.compute import watch
from p2pnode.compute.llama_abi import GGML_TYPE_F32, lib

NAMES = (b"l_out-3", b"ffn_moe_out-3")
WEIGHTS = (b"blk.0.attn_output.weight", b"blk.3.ffn_down.weight")
SOURCES = (*WEIGHTS, *NAMES, b"blk.3.ffn_down.weigh", b"blk.13.ffn_down.weight", b"blk.", b"", b"x" * 63)


@contextmanager
def graph_nodes() -> Iterator[list[int]]:
    """A tensor of every name, without operand, and a node that llama.cpp would call `node_N` made of each."""
    context = lib.ggml_init(lib.ggml_init.argtypes[0](lib.ggml_tensor_overhead() * 64, None, True))
    try:
        found = []
        for name in SOURCES:
            tensor = lib.ggml_new_tensor_2d(context, GGML_TYPE_F32, 4, 1)
            lib.ggml_set_name(tensor, name)
            made = lib.ggml_neg(context, tensor)
            lib.ggml_set_name(made, b"node_7")
            found += [tensor, made]
        yield found
    finally:
        lib.ggml_free(context)


def wanted(made: watch.EvalCallback, nodes: list[int]) -> list[bool]:
    return [made.function(node, True, made.data) for node in nodes]


def test_setup_built_the_compiled_way() -> None:
    assert watch.compiled() is not None


def test_both_ways_want_the_same_nodes() -> None:
    with graph_nodes() as nodes:
        for weights in ((), WEIGHTS):
            fast, slow = (watch.watch(NAMES, weights, bool, fast=fast) for fast in (True, False))
            expected = [name in NAMES if n == 0 else name in weights for name in SOURCES for n in range(2)]
            assert wanted(fast, nodes) == wanted(slow, nodes) == expected
            assert wanted(slow, nodes) == expected, "names are remembered, and still right"


def test_a_computed_node_is_taken_and_says_whether_to_go_on() -> None:
    for fast in (True, False):
        taken: list[int] = []

        def take(tensor: int, taken: list[int] = taken) -> bool:
            taken.append(tensor)
            return len(taken) < 2

        made = watch.watch(NAMES, WEIGHTS, take, fast=fast)
        assert [made.function(address, False, made.data) for address in (4096, 8192)] == [True, False]
        assert taken == [4096, 8192]
