"""Keys and values in fewer bits, and flash attention on or off: a pipeline is the model alone, number for number.

One device that kept its part otherwise would change the numbers: so the choice reached all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from p2pnode.endpoint import NodeError
from tests.kit.mesh import MeshOfProcesses, mesh_of
from tests.kit.toy_models import TOYS, write_model

FAMILIES = ("llama", "qwen3", "gpt-oss")
PROMPT = " ".join(f"w{number}" for number in range(1, 33))
USUAL = "flash=on"
WORDS = ("kv=q8_0", "kv=q4_0", "kv_k=q8_0", "flash=off")
BOTH = {"devices": ["alpha", "beta"], "stages": 2}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    root = tmp_path_factory.mktemp("kv")
    with mesh_of(root, "alpha", "beta") as made:
        for name in FAMILIES:
            toy = replace(TOYS[name], text=True, vocabulary=320, head_width=32)  # blocks of 32 numbers
            made.nodes[0].cli("pull", str(write_model(root / f"{name}.gguf", toy)))
        yield made


def answer(mesh: MeshOfProcesses, name: str, mode: str, words: str, **wish: Any) -> tuple[str, list[float]]:
    """Greedy, on a plan made for it, with the log-probability of every token."""
    alpha = mesh.nodes[0]
    plan = alpha.api.post(
        "/plan", {"model": name, "mode": mode, "apply": True, "engine": dict([words.split("=")]), **wish}
    )
    assert plan["engine"] == words.replace(USUAL, ""), "what is usual is not said"
    asked = {"model": name, "mode": mode, "prompt": PROMPT, "temperature": 0, "max_tokens": 12, "logprobs": 1}
    choice = alpha.api.post("/v1/completions", {**asked, "cache_prompt": False})["choices"][0]
    alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})
    return choice["text"], choice["logprobs"]["token_logprobs"]


def close(one: list[float], other: list[float], *, rel: float = 1e-5) -> bool:
    """A prompt's last row may be computed with other rows or without: float32 rounds the last bit then."""
    return one == pytest.approx(other, rel=rel)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_computes_as_the_model_alone(mesh: MeshOfProcesses, name: str) -> None:
    _, usual = answer(mesh, name, "local", USUAL)
    for words in (USUAL, *WORDS):
        text, numbers = answer(mesh, name, "local", words)
        apart, others = answer(mesh, name, "pipeline", words, **BOTH)
        assert apart == text, words
        assert close(others, numbers), words
        assert words == USUAL or numbers != usual, f"{words} says something else, so it was done"
        assert "kv" not in words or not close(numbers, usual, rel=1e-4), words


def test_the_head_s_choice_is_every_device_s(mesh: MeshOfProcesses) -> None:
    """What must be alike is no option of a device; what one chose for plans of its own stays out of another's."""
    alpha, beta = mesh.nodes
    for words in WORDS:
        with pytest.raises(NodeError, match="is no engine option"):
            beta.api.post("/command/set", {"key": "device.engine", "value": words})
    expected = answer(mesh, "llama", "pipeline", USUAL, **BOTH)
    beta.cli("set", "engine.llama", "kv=q4_0")
    assert answer(mesh, "llama", "pipeline", USUAL, **BOTH) == expected
    assert answer(mesh, "llama", "pipeline", "kv=q4_0", **BOTH) != expected
    alpha.cli("set", "engine.llama", "default")


def test_four_bits_without_flash_attention_are_refused_before_any_device_is_asked(
    mesh: MeshOfProcesses,
) -> None:
    for kv in ("q8_0", "q4_0"):
        with pytest.raises(NodeError, match="need flash attention"):
            mesh.nodes[0].api.post("/plan", {"model": "llama", "engine": {"kv": kv, "flash": "off"}, **BOTH})
