"""The random models load in llama.cpp, decode, and are the same every time."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/random_model.py, which is a script and not a package."""
    path = Path(__file__).parents[2] / "tools" / "random_model.py"
    spec = importlib.util.spec_from_file_location("random_model", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("weight_type", ["f16", "q8_0", "q4_k_m"])
def test_a_random_model_decodes(tool: ModuleType, tmp_path: Path, weight_type: str) -> None:
    """Every weight type gives finite logits of the vocabulary's size, and leaves no F16 copy behind."""
    path = tmp_path / "model.gguf"
    tool.write_random_model(path, tool.SHAPES["tiny"], weight_type)
    assert list(tmp_path.iterdir()) == [path]
    model = llama_cpp.Llama(
        str(path), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False
    )
    model.eval(model.tokenize("any prompt, even ☃".encode()))
    logits = np.array(model.scores[: model.n_tokens])
    assert logits.shape[1] == 512
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1
    model.close()


def test_a_model_with_bias_and_tied_output_decodes(tool: ModuleType, tmp_path: Path) -> None:
    """The qwen2 family's extra tensors are the ones llama.cpp asks for."""
    path = tmp_path / "qwen2.gguf"
    shape = tool.ModelShape(
        2, 256, 4, 2, 512, 512, architecture="qwen2", has_tied_output=True, has_qkv_bias=True
    )
    tool.write_random_model(path, shape)
    model = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False)
    model.eval([5, 6, 7])
    assert model.n_tokens == 3
    model.close()


def test_the_same_seed_gives_the_same_file(tool: ModuleType, tmp_path: Path) -> None:
    """Measurements on two machines use the same weights; another seed gives others."""
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tool.write_random_model(tmp_path / name, tool.SHAPES["tiny"], seed=seed)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]
