"""Write the trained demo model as a GGUF file, with tokenizer, chat template and licence inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from demo_tokenizer import END_OF_TEXT, TURN_END, TURN_START, vocabulary
from numpy.typing import NDArray

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DESCRIPTION = (
    "A tiny chat model that shows how p2pnode runs one model on several devices. Trained from zero on sentences "
    "written for the project. It knows a few hundred simple things; do not rely on its answers."
)
QUANTISATION = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def write_demo_model(
    path: Path,
    weights: Mapping[str, NDArray[np.float32]],
    tokenizer_path: Path,
    *,
    head_count: int,
    kv_head_count: int,
    context_count: int,
    rope_base: float,
    norm_epsilon: float,
    kind: str = "q8_0",
) -> None:
    """Write weights named as in llama.cpp; the output matrix is stored twice so that either end can be cut off."""
    weight_type, file_type = QUANTISATION[kind]
    vocab_count, embedding_size = weights["token_embd.weight"].shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("p2pnode demo")
    writer.add_basename("p2pnode-demo")
    writer.add_description(DESCRIPTION)
    writer.add_author("The p2pnode project")
    writer.add_license("apache-2.0")
    writer.add_license_name("Apache License 2.0")
    writer.add_languages(["en"])
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(context_count)
    writer.add_embedding_length(embedding_size)
    writer.add_block_count(1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blk.")))
    writer.add_feed_forward_length(weights["blk.0.ffn_gate.weight"].shape[0])
    writer.add_head_count(head_count)
    writer.add_head_count_kv(kv_head_count)
    writer.add_layer_norm_rms_eps(norm_epsilon)
    writer.add_rope_dimension_count(embedding_size // head_count)
    writer.add_rope_freq_base(rope_base)
    writer.add_vocab_size(vocab_count)
    add_tokenizer(writer, tokenizer_path, vocab_count)
    for name, values in {**weights, "output.weight": weights["token_embd.weight"]}.items():
        if values.ndim == 1:
            writer.add_tensor(name, values.astype(np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, weight_type), raw_dtype=weight_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer_path: Path, vocab_count: int) -> None:
    """Word list, merges, special tokens and template; unused ids are filled up so that ids and rows agree."""
    tokens, merges = vocabulary(tokenizer_path)
    control = [tokens.index(name) for name in (END_OF_TEXT, TURN_START, TURN_END)]
    types = [gguf.TokenType.CONTROL if at in control else gguf.TokenType.NORMAL for at in range(len(tokens))]
    fill = [f"<|unused{at}|>" for at in range(len(tokens), vocab_count)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + fill)
    writer.add_token_types(types + [gguf.TokenType.UNUSED] * len(fill))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(control[0])
    writer.add_eos_token_id(control[2])
    writer.add_eot_token_id(control[2])
    writer.add_pad_token_id(control[0])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
