"""A session's sampler: llama.cpp's chain, its grammar, and the log probabilities of what was chosen."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pnode.compute.engine_protocol import SampledToken
from p2pnode.compute.llama_abi import L
from p2pnode.compute.llama_context import Context
from p2pnode.compute.llama_model import Model
from p2pnode.compute.sampling import SamplerPlan
from p2pnode.errors import RequestError

_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
"""`llama_token_data`."""
_KEEP_AT_LEAST = 1


class Sampler:
    """Owns the C samplers of one session; `close` frees them."""

    def __init__(self, model: Model, plan: SamplerPlan) -> None:
        self._model = model
        self._plan = plan
        self._grammar = self._make_grammar(plan.grammar) if plan.grammar else None
        self._chain = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
        for part in self._parts():
            L.llama_sampler_chain_add(self._chain, part)
        self._position = -1
        """Of the row that was sampled last."""
        self._before: tuple[Any, Any] = (None, None)
        """Chain and grammar as they were before that."""

    def _make_grammar(self, text: str) -> Any:
        if not self._model.has_text:
            raise RequestError("a grammar needs a unit with a vocabulary")
        grammar = L.llama_sampler_init_grammar(self._model.vocab, text.encode(), b"root")
        if not grammar:
            raise RequestError("the grammar is not valid GBNF", hint="it needs a rule named root")
        return grammar

    def _parts(self) -> list[Any]:
        plan, vocab_tokens = self._plan, self._model.vocab_tokens
        parts = []
        if plan.logit_bias:
            biases = (L.llama_logit_bias * len(plan.logit_bias))(*plan.logit_bias)
            parts.append(L.llama_sampler_init_logit_bias(vocab_tokens, len(plan.logit_bias), biases))
        if plan.penalises:
            parts.append(
                L.llama_sampler_init_penalties(
                    vocab_tokens,
                    plan.repeat_last_tokens,
                    plan.repeat_penalty,
                    plan.frequency_penalty,
                    plan.presence_penalty,
                )
            )
        if plan.greedy:
            return [*parts, L.llama_sampler_init_greedy()]
        if plan.top_k > 0:
            parts.append(L.llama_sampler_init_top_k(plan.top_k))
        if plan.typical_p < 1.0:
            parts.append(L.llama_sampler_init_typical(plan.typical_p, _KEEP_AT_LEAST))
        if plan.top_p < 1.0:
            parts.append(L.llama_sampler_init_top_p(plan.top_p, _KEEP_AT_LEAST))
        if plan.min_p > 0.0:
            parts.append(L.llama_sampler_init_min_p(plan.min_p, _KEEP_AT_LEAST))
        return [*parts, L.llama_sampler_init_temp(plan.temperature), L.llama_sampler_init_dist(plan.seed)]

    def accept_prompt(self, tokens: Sequence[int]) -> None:
        """Let penalties see the end of the prompt."""
        if self._plan.penalises:
            for token in tokens[-self._plan.repeat_last_tokens :]:
                self._model.check_token(token)
                L.llama_sampler_accept(self._chain, token)

    def sample_at(self, position: int, context: Context, index: int) -> SampledToken:
        """As `sample`, and idempotent by position like everything else: asked again for the same one (its asker lost
        the way and did not hear of the answer), it draws the same numbers again instead of the next ones.
        """
        if self._has_state:
            if position == self._position:
                self._go_back()
            else:
                self._remember()
        self._position = position
        return self.sample(context, index)

    @property
    def _has_state(self) -> bool:
        """Whether a choice changes the next one; every copy costs some microseconds."""
        return not self._plan.greedy or self._plan.penalises or self._grammar is not None

    def _remember(self) -> None:
        self._free(self._before)
        self._before = self._copies((self._chain, self._grammar))

    def _go_back(self) -> None:
        self._free((self._chain, self._grammar))
        self._chain, self._grammar = self._copies(self._before)

    @staticmethod
    def _copies(samplers: tuple[Any, Any]) -> tuple[Any, Any]:
        chain, grammar = (L.llama_sampler_clone(one) if one else None for one in samplers)
        return chain, grammar

    @staticmethod
    def _free(samplers: tuple[Any, Any]) -> None:
        for one in samplers:
            if one:
                L.llama_sampler_free(one)

    def sample(self, context: Context, index: int) -> SampledToken:
        """Choose from row `index` of the last batch and remember the choice."""
        if self._grammar is None:
            scores = context.logits(index) if self._plan.logprobs is not None else None
            token = int(L.llama_sampler_sample(self._chain, context.pointer, index))
        else:
            scores = context.logits(index)
            token = self._sample_by_grammar(scores)
        has_text = self._model.has_text
        piece = self._model.piece(token) if has_text else b""
        eog = has_text and self._model.is_eog(token)
        if scores is None or self._plan.logprobs is None:
            return SampledToken(token, piece, eog)
        logprob, top = self._logprobs(scores, token, self._plan.logprobs)
        return SampledToken(token, piece, eog, logprob, top)

    def _sample_by_grammar(self, logits: NDArray[np.float32]) -> int:
        """Choose freely and keep the choice if the grammar allows it; else choose among what it allows.

        The grammar looks at every candidate, which is slow over a whole vocabulary and seldom needed.
        """
        token = self._choose(logits, constrain=False)
        if not self._allowed(token):
            token = self._choose(logits, constrain=True)
        L.llama_sampler_accept(self._grammar, token)
        L.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, logits: NDArray[np.float32], *, constrain: bool) -> int:
        candidates = np.zeros(len(logits), _CANDIDATE)
        candidates["id"] = np.arange(len(logits), dtype=np.int32)
        candidates["logit"] = logits
        array = _candidates(candidates)
        if constrain:
            L.llama_sampler_apply(self._grammar, ctypes.byref(array))
        L.llama_sampler_apply(self._chain, ctypes.byref(array))
        assert 0 <= array.selected < array.size, "the sampler chain chose nothing"
        return int(array.data[array.selected].id)

    def _allowed(self, token: int) -> bool:
        one = np.array([(token, 1.0, 0.0)], _CANDIDATE)
        L.llama_sampler_apply(self._grammar, ctypes.byref(_candidates(one)))
        return bool(np.isfinite(one["logit"][0]))

    def _logprobs(
        self, logits: NDArray[np.float32], token: int, count: int
    ) -> tuple[float, tuple[tuple[int, float, bytes], ...]]:
        """Of the model's own distribution, before temperature and filters, as OpenAI defines them."""
        wide = logits.astype(np.float64)
        normal = wide.max() + np.log(np.exp(wide - wide.max()).sum())
        best = np.argpartition(-wide, min(count, len(wide) - 1))[:count]
        best = best[np.argsort(-wide[best], kind="stable")]
        top = tuple((int(i), float(wide[i] - normal), self._piece(int(i))) for i in best)
        return float(wide[token] - normal), top

    def _piece(self, token: int) -> bytes:
        return self._model.piece(token, special=True) if self._model.has_text else b""

    def close(self) -> None:
        self._free((self._chain, self._grammar))
        self._free(self._before)
        self._chain = self._grammar = None
        self._before = (None, None)


def _candidates(values: NDArray[Any]) -> Any:
    array = L.llama_token_data_array()
    array.data = values.ctypes.data_as(ctypes.POINTER(L.llama_token_data))
    array.size, array.selected, array.sorted = len(values), -1, False
    return array
