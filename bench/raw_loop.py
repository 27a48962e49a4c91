"""The limit: llama.cpp's decode loop with nothing around it, in a process of its own.

    python bench/raw_loop.py MODEL.gguf THREADS PROMPT COUNT ROUNDS [huge]

With ROUNDS 0 it measures once for every line it reads, and stays loaded in between. With `huge` its weights lie in
huge pages, as an engine's do; the binding by itself has small ones.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any


class Loop:
    """The plain binding, loaded once."""

    def __init__(self, path: str, threads: int, prompt: int, count: int, *, huge: bool = False) -> None:
        import llama_cpp.llama_cpp as llama

        self._llama, self._prompt, self._count = llama, prompt, count
        self._quiet = llama.llama_log_callback(lambda _level, _text, _data: None)
        llama.llama_log_set(self._quiet, None)
        llama.llama_backend_init()
        options = llama.llama_model_default_params()
        options.n_gpu_layers = 0
        options.load_mode = 0
        if huge:
            from p2pnode.compute.huge_pages import filled_in_huge_pages

            hear = filled_in_huge_pages(lambda _done: True)
            self._hear = llama.llama_progress_callback(lambda done, _data: hear(done))
            options.progress_callback = self._hear
        self._model = llama.llama_model_load_from_file(path.encode(), options)
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = (
            prompt + count + 8,
            max(prompt, 512),
            max(prompt, 512),
        )
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = 1
        self._context = llama.llama_init_from_model(self._model, settings)
        self._sampler = llama.llama_sampler_init_greedy()
        self._decode([300, 301])

    def _decode(self, tokens: list[int]) -> None:
        llama = self._llama
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        result = llama.llama_decode(self._context, llama.llama_batch_get_one(ids, len(tokens)))
        assert result == 0, result

    def measure(self) -> dict[str, Any]:
        """Prefill speed, and seconds of every decoded token."""
        llama, context = self._llama, self._context
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        started = time.perf_counter()
        self._decode([300 + n % 500 for n in range(self._prompt)])
        prefill = self._prompt / (time.perf_counter() - started)
        steps = []
        for _ in range(self._count):
            started = time.perf_counter()
            self._decode([llama.llama_sampler_sample(self._sampler, context, -1)])
            steps.append(time.perf_counter() - started)
        return {"prefill": prefill, "steps_s": steps}


def main(path: str, threads: int, prompt: int, count: int, rounds: int, *, huge: bool) -> None:
    loop = Loop(path, threads, prompt, count, huge=huge)
    for _ in range(rounds) if rounds else sys.stdin:
        print(json.dumps(loop.measure()), flush=True)


if __name__ == "__main__":
    path, *numbers = [argument for argument in sys.argv[1:] if argument != "huge"]
    main(path, *map(int, numbers), huge="huge" in sys.argv)
