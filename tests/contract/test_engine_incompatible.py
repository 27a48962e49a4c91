"""A llama.cpp that changed: an engine says so when it starts or loads, before anything was computed with it.

The engine's own process and library are real; what it expects of the library is changed, which is the same difference
seen from the other side.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.part import Part, Shard
from p2pnode.compute.surgery import cut
from p2pnode.errors import EngineIncompatible
from tests.kit.engine_units import cut_spec, index_at

EDITED = """
import importlib.abc, importlib.machinery, sys

class Edited(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        text = self.get_source(fullname)
        assert text.count({old!r}) == 1
        return self.source_to_code(text.replace({old!r}, {new!r}), self.path)

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname != "p2pnode.compute.llama_abi":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        spec.loader = Edited(fullname, spec.origin)
        return spec

sys.meta_path.insert(0, Finder())
"""


async def start_expecting(folder: Path, old: str, new: str) -> EngineClient:
    """An engine whose `llama_abi` has other words than ours, from its first import on."""
    (folder / "sitecustomize.py").write_text(EDITED.format(old=old, new=new))
    return await EngineClient.start(environment={"PYTHONPATH": str(folder)})


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("TENSOR_TYPE = 0\n", "TENSOR_TYPE = 16\n", "type"),
        ("TENSOR_NE = 16\n", "TENSOR_NE = 24\n", "shape"),
        ("TENSOR_NB = 48\n", "TENSOR_NB = 56\n", "strides"),
        ("TENSOR_SOURCE = 152\n", "TENSOR_SOURCE = 160\n", "source"),
        ("TENSOR_SOURCE = 152\n", "TENSOR_SOURCE = 16\n", "source"),
        ("TENSOR_DATA = 248\n", "TENSOR_DATA = 240\n", "data"),
        ("TENSOR_NAME = 256\n", "TENSOR_NAME = 248\n", "name"),
        ("TENSOR_NAME_BYTES = 64\n", "TENSOR_NAME_BYTES = 640\n", "size"),
    ],
)
async def test_tensors_of_another_layout_are_refused_at_the_start(
    tmp_path: Path, old: str, new: str, what: str
) -> None:
    with pytest.raises(EngineIncompatible, match=f"layout we do not know: .*{what}") as refused:
        await start_expecting(tmp_path, old, new)
    assert refused.value.code == "engine_incompatible"
    assert "llama-cpp-python version named in pyproject.toml" in refused.value.hint


async def test_a_library_without_a_call_we_make_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(EngineIncompatible, match="no ggml_backend_tensor_fetch") as refused:
        await start_expecting(tmp_path, '"ggml_backend_tensor_get":', '"ggml_backend_tensor_fetch":')
    assert "llama-cpp-python version named in pyproject.toml" in refused.value.hint


async def test_the_same_words_start(tmp_path: Path) -> None:
    """So that it is the changed word that is refused, and not the way it is changed."""
    engine = await start_expecting(tmp_path, "TENSOR_NE = 16\n", "TENSOR_NE = 8 + 8\n")
    assert engine.alive
    await engine.close()


@pytest.mark.parametrize("part", [Part(1, 3), Part(0, 3, embedding=True)])
@pytest.mark.asyncio(loop_scope="module")
async def test_a_result_that_is_not_where_it_was_is_refused_at_loading(
    engine: EngineClient, model: Path, part: Part
) -> None:
    spec = cut_spec(cut(index_at(model), part), model)
    assert spec.tap
    for good, wrong in (("l_out-", "layer_out-"), ("-", "--")):
        with pytest.raises(EngineIncompatible, match="gave 0 of 1 rows") as refused:
            await engine.load(replace(spec, tap=spec.tap.replace(good, wrong)))
        assert refused.value.code == "engine_incompatible"
        assert "llama-cpp-python version named in pyproject.toml" in refused.value.hint
    assert (await engine.stats())["units"] == {}, "and nothing of it is kept"
    info = await engine.load(spec)
    await engine.unload(info.unit_id)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_partial_sum_that_is_not_where_it_was_is_refused_at_loading(
    engine: EngineClient, model: Path
) -> None:
    index = index_at(model)
    whole = Part(0, index.layer_count, embedding=True, output=True, shard=Shard(0, (1, 1)))
    spec = cut_spec(cut(index, whole), model, rank=0, ranks=2)
    sums = spec.reduce
    assert len(sums) == 2 * index.layer_count
    for changed in (("blk.0.attn_exit.weight", *sums[1:]), (*sums[:-1], "ffn_all_out-4")):
        with pytest.raises(
            EngineIncompatible, match=f"{len(sums) - 1} of {len(sums)} partial sums"
        ) as refused:
            await engine.load(replace(spec, reduce=changed))
        assert "builds this architecture differently" in refused.value.hint
        assert "llama-cpp-python version named in pyproject.toml" in refused.value.hint
    info = await engine.load(spec)
    await engine.unload(info.unit_id)
