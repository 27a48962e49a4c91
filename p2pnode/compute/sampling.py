"""Sampling settings made safe: llama.cpp aborts on some values and misbehaves on others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from p2pnode.errors import RequestError
from p2pnode.facade import SamplingParams
from p2pnode.limits import GRAMMAR_BYTES_MAX, LOGIT_BIAS_MAX, LOGPROBS_MAX, PENALTY_TOKENS_MAX

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing logits by less overflows float32."""
SEED_DEFAULT = 0x9E3779B9
"""Of a session that nobody gave a seed: a node gives every request one of its own."""
SEED_MAX = 0xFFFFFFFE
"""llama.cpp takes the largest 32-bit seed as "choose one yourself", which no two machines would do alike."""


@dataclass(frozen=True, slots=True)
class SamplerPlan:
    """Checked settings of one session's sampler chain."""

    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    repeat_last_tokens: int
    seed: int
    logit_bias: tuple[tuple[int, float], ...]
    grammar: str | None
    logprobs: int | None

    @property
    def penalises(self) -> bool:
        return self.repeat_last_tokens > 0 and (
            self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        )


def params_as_message(params: SamplingParams) -> dict[str, Any]:
    """SamplingParams as msgpack can carry them."""
    values = asdict(params)
    values["logit_bias"] = [[int(token), float(bias)] for token, bias in params.logit_bias.items()]
    return values


def _number(values: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{name} must be a finite number")
    if not low <= value <= high:
        raise RequestError(f"{name} is {value}, must be from {low:g} to {high:g}")
    return float(value)


def _biases(pairs: Sequence[Sequence[Any]], vocab_tokens: int) -> tuple[tuple[int, float], ...]:
    if len(pairs) > LOGIT_BIAS_MAX:
        raise RequestError(f"{len(pairs)} logit biases, at most {LOGIT_BIAS_MAX}")
    checked = []
    for token, bias in pairs:
        if not isinstance(token, int) or not 0 <= token < vocab_tokens:
            raise RequestError(f"logit_bias names token {token}, the model has {vocab_tokens}")
        if not isinstance(bias, int | float) or math.isnan(bias):
            raise RequestError("a logit bias must be a number")
        checked.append((token, float(bias)))
    return tuple(checked)


def plan_sampler(values: Mapping[str, Any], vocab_tokens: int) -> SamplerPlan:
    """Check settings as they came (a message map); raises RequestError naming the one that is wrong."""
    grammar = values.get("grammar")
    if grammar is not None and (not isinstance(grammar, str) or "\0" in grammar):
        raise RequestError("grammar must be GBNF text")
    if grammar is not None and len(grammar.encode()) > GRAMMAR_BYTES_MAX:
        raise RequestError(f"the grammar is longer than {GRAMMAR_BYTES_MAX} bytes")
    logprobs = values.get("logprobs")
    if logprobs is not None and (not isinstance(logprobs, int) or not 0 <= logprobs <= LOGPROBS_MAX):
        raise RequestError(f"logprobs must be from 0 to {LOGPROBS_MAX}")
    seed = values.get("seed")
    if seed is not None and not isinstance(seed, int):
        raise RequestError("seed must be a whole number")
    temperature = _number(values, "temperature", 0.0, 100.0)
    last = int(_number(values, "repeat_last_tokens", -1, PENALTY_TOKENS_MAX))
    return SamplerPlan(
        greedy=temperature < GREEDY_BELOW,
        temperature=temperature,
        top_k=int(_number(values, "top_k", -1, 2**31 - 1)),
        top_p=_number(values, "top_p", 0.0, 1.0),
        min_p=_number(values, "min_p", 0.0, 1.0),
        typical_p=_number(values, "typical_p", 0.0, 1.0),
        repeat_penalty=_number(values, "repeat_penalty", 0.01, 100.0),
        presence_penalty=_number(values, "presence_penalty", -100.0, 100.0),
        frequency_penalty=_number(values, "frequency_penalty", -100.0, 100.0),
        repeat_last_tokens=PENALTY_TOKENS_MAX if last < 0 else last,
        seed=min((SEED_DEFAULT if seed is None else seed) & 0xFFFFFFFF, SEED_MAX),
        logit_bias=_biases(values.get("logit_bias") or (), vocab_tokens),
        grammar=grammar or None,
        logprobs=logprobs,
    )
