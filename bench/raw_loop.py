"""The limit: llama.cpp's decode loop with nothing around it, in a process of its own."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any


def run(path: str, threads: int, prompt: int, count: int, rounds: int) -> dict[str, Any]:
    """Prefill and decode speeds of the plain binding."""
    import llama_cpp.llama_cpp as llama

    quiet = llama.llama_log_callback(lambda _level, _text, _data: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    options = llama.llama_model_default_params()
    options.n_gpu_layers = 0
    options.load_mode = 0
    model = llama.llama_model_load_from_file(path.encode(), options)
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = (
        prompt + rounds * count + 8,
        max(prompt, 512),
        max(prompt, 512),
    )
    settings.n_threads = settings.n_threads_batch = threads
    settings.flash_attn_type = 1
    context = llama.llama_init_from_model(model, settings)

    def decode(tokens: list[int]) -> None:
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        result = llama.llama_decode(context, llama.llama_batch_get_one(ids, len(tokens)))
        assert result == 0, result

    decode([300, 301])
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    started = time.perf_counter()
    decode([300 + n % 500 for n in range(prompt)])
    prefill = prompt / (time.perf_counter() - started)
    sampler = llama.llama_sampler_init_greedy()
    steps = []
    for _ in range(rounds * count):
        started = time.perf_counter()
        decode([llama.llama_sampler_sample(sampler, context, -1)])
        steps.append(time.perf_counter() - started)
    return {"prefill": prefill, "steps_s": steps}


if __name__ == "__main__":
    path, *numbers = sys.argv[1:]
    print(json.dumps(run(path, *map(int, numbers))))
