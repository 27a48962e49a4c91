"""Metadata of a cut: everything copied, and the few values that speak about layers or the vocabulary rewritten."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

from p2pnode.compute.architectures import Architecture, has_rope_sections
from p2pnode.compute.gguf_values import Entry, ModelIndex, ValueType, array, scalar
from p2pnode.errors import BadModelFile

_NOT_PER_LAYER = frozenset({"rope.dimension_sections", "attention.shared_kv_layers"})
SLIDING_WINDOW_ENDLESS = 1 << 22
"""Longer than any context, short enough that llama.cpp's 32-bit sizes hold with 256 sequences."""


def sliding_pattern(row: Architecture, index: ModelIndex) -> list[bool]:
    """For every layer of the model: whether its attention slides."""
    key, count = "attention.sliding_window_pattern", index.layer_count
    if row.sliding is None or (
        row.sliding.without == "off" and not index.parameter_int("attention.sliding_window", 0)
    ):
        return [False] * count
    if isinstance(index.parameter(key), list):
        return [bool(value) for value in index.parameter_ints(key)]
    return row.sliding.pattern(count, index.parameter_int(key, row.sliding.period))


def recurrent_layers(row: Architecture, index: ModelIndex) -> list[bool]:
    """For every layer of the model: whether it keeps a state instead of keys and values."""
    count = index.layer_count
    if row.recurrent == "head_count_kv":
        return [heads == 0 for heads in index.parameter_ints("attention.head_count_kv", 1)]
    if row.recurrent == "all":
        return [True] * count
    if row.recurrent == "interval":
        if index.parameter("attention.recurrent_layers") is not None:
            return [bool(value) for value in index.parameter_ints("attention.recurrent_layers")]
        interval = index.parameter_int("full_attention_interval", 4) or count + 1
        real = count - index.parameter_int("nextn_predict_layers", 0)
        return [layer < real and (layer + 1) % interval != 0 for layer in range(count)]
    return [False] * count


def _float32(value: float) -> float:
    """Rounded as llama.cpp computes."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


class Rewriter:
    """Collects replacements; `entries` gives the metadata in the original order, new keys last."""

    def __init__(self, row: Architecture, index: ModelIndex) -> None:
        self._row = row
        self._index = index
        self._replaced: dict[str, Entry | None] = {}
        self._name = ""

    def rename(self, architecture: str) -> None:
        """Write the file as another architecture, keys and all."""
        self._name = architecture

    def put(self, key: str, kind: ValueType, value: Any) -> None:
        name = f"{self._index.architecture}.{key}"
        self._replaced[name] = scalar(name, kind, value)

    def put_array(self, key: str, kind: ValueType, values: Sequence[Any]) -> None:
        name = f"{self._index.architecture}.{key}"
        self._replaced[name] = array(name, kind, values)

    def has(self, key: str) -> bool:
        return f"{self._index.architecture}.{key}" in self._index.metadata

    def layers(self, sources: Sequence[int]) -> None:
        """The file holds these layers of the original, in this order."""
        index, row = self._index, self._row
        count = index.layer_count
        prefix = f"{index.architecture}."
        self.put("block_count", ValueType.UINT32, len(sources))
        for name, entry in index.metadata.items():
            if not (name.startswith((prefix, "xielu.")) and entry.is_array and entry.count == count):
                continue
            if name.removeprefix(prefix) not in _NOT_PER_LAYER:
                values: Any = entry.value()
                self._replaced[name] = array(name, entry.element_type, [values[source] for source in sources])
        if self.has("nextn_predict_layers"):
            self.put("nextn_predict_layers", ValueType.UINT32, 0)
        if row.leading_dense:
            lead = index.parameter_int("leading_dense_block_count", 0)
            self.put("leading_dense_block_count", ValueType.UINT32, sum(source < lead for source in sources))
        if row.recurrent == "interval":
            flags = recurrent_layers(row, index)
            self.put_array(
                "attention.recurrent_layers", ValueType.BOOL, [flags[source] for source in sources]
            )
        self._sliding(sources)
        if self.has("n_deepstack_layers"):  # image features only: text adds zeros there
            self.put("n_deepstack_layers", ValueType.UINT32, 0)
        if index.architecture == "deepseek2":
            self._deepseek2()
        if index.architecture == "minicpm" and not self.has("residual_scale"):
            self.put("residual_scale", ValueType.FLOAT32, _float32(1.4) / _float32(math.sqrt(count)))

    def _sliding(self, sources: Sequence[int]) -> None:
        index, sliding = self._index, self._row.sliding
        pattern = sliding_pattern(self._row, index)
        if sliding is None or not any(pattern):
            return
        local = [pattern[source] for source in sources]
        if not any(local) and sliding.without == "off":
            self.put("attention.sliding_window", ValueType.UINT32, 0)
        elif not any(local):
            # llama.cpp aborts without a sliding layer: let all slide over a window that never ends
            local = [True] * len(local)
            self.put("attention.sliding_window", ValueType.UINT32, SLIDING_WINDOW_ENDLESS)
            if self.has("rope.freq_base_swa"):
                base = index.parameter_float("rope.freq_base", 10000.0)
                self.put("rope.freq_base_swa", ValueType.FLOAT32, base)
        self.put_array("attention.sliding_window_pattern", ValueType.BOOL, local)

    def _deepseek2(self) -> None:
        """Values llama.cpp would guess from the layer count of the whole model."""
        index = self._index
        if not self.has("attention.q_lora_rank"):
            self.put("attention.q_lora_rank", ValueType.UINT32, 0)
        if not index.parameter_int("expert_gating_func", 0):
            sigmoid = index.layer_count in (47, 48) and vocabulary_size(index) == 154_880
            self.put("expert_gating_func", ValueType.UINT32, 2 if sigmoid else 1)

    def rows_input(self) -> None:
        """Rows come in: an embedding scale that can be switched off is."""
        if self._row.scale == "key" and (self.has("embedding_scale") or self._row.scale_default):
            self.put("embedding_scale", ValueType.FLOAT32, 0.0)
        if self._row.sections_for_rows and not has_rope_sections(self._index):
            half = self._index.parameter_int("rope.dimension_count") // 2
            self.put_array("rope.dimension_sections", ValueType.INT32, [max(1, half - 1), 1, 0, 0])

    def without_tokenizer(self, vocabulary: int) -> None:
        for name in self._index.metadata:
            if name.startswith("tokenizer."):
                self._replaced[name] = None
        self._replaced["tokenizer.ggml.model"] = scalar("tokenizer.ggml.model", ValueType.STRING, "no_vocab")
        self.put("vocab_size", ValueType.UINT32, vocabulary)

    def entries(self) -> list[Entry]:
        out = []
        for name, entry in self._index.metadata.items():
            kept = self._replaced.get(name, entry)
            if kept is not None:
                out.append(kept)
        known = self._index.metadata
        out += [entry for name, entry in self._replaced.items() if entry is not None and name not in known]
        return [self._renamed(entry) for entry in out] if self._name else out

    def _renamed(self, entry: Entry) -> Entry:
        if entry.key == "general.architecture":
            return scalar(entry.key, ValueType.STRING, self._name)
        prefix = f"{self._index.architecture}."
        if entry.key.startswith(prefix):
            return Entry(f"{self._name}.{entry.key.removeprefix(prefix)}", entry.type, entry.raw)
        return entry


def vocabulary_size(index: ModelIndex) -> int:
    """Tokens of the model: rows of its embedding."""
    tensor = index.tensors.get("token_embd.weight")
    if tensor is None or len(tensor.shape) != 2:
        raise BadModelFile("the model has no token embedding", hint="it may be an adapter or a projector")
    return tensor.shape[1]
