"""Settings of a unit in llama.cpp's numbers, and what of them llama.cpp would abort on."""

from __future__ import annotations

from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.llama_abi import GGML_TYPE_F16, L
from p2pnode.errors import RequestError
from p2pnode.limits import (
    ENGINE_BATCH_ROWS_MAX,
    ENGINE_CONTEXT_TOKENS_MAX,
    ENGINE_SESSIONS_MAX,
    ENGINE_THREADS_MAX,
    GPU_LAYERS_ALL,
    PREFIX_BYTES_MAX,
)

LOAD_MODES = {"auto": -1, "copy": 0, "mmap": 1, "mlock": 2, "mmap_mlock": 3, "direct": 4}
SPLIT_MODES = {"none": 0, "layer": 1, "row": 2, "tensor": 3}
KV_TYPES = {
    "f32": 0,
    "f16": GGML_TYPE_F16,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "bf16": 30,
}
FLASH = {"auto": -1, "off": 0, "on": 1}
ROPE_SCALING = {"model": -1, "none": 0, "linear": 1, "yarn": 2, "longrope": 3}
POOLING = {"model": -1, "none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
_ROWS_DTYPES, _INPUTS = ("f32", "f16", "bf16", "q8_0"), ("tokens", "rows")
_OUTPUTS, _ROWS_OUT = ("sample", "rows", "embedding", "none"), ("all", "wanted")
_KV_QUANTISED = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


def check_spec(spec: UnitSpec) -> None:
    """Refuse settings outside the limits or that llama.cpp would abort on."""
    bounds = (
        ("context_tokens", spec.context_tokens, 1, ENGINE_CONTEXT_TOKENS_MAX),
        ("batch_rows", spec.batch_rows, 1, ENGINE_BATCH_ROWS_MAX),
        (
            "sessions_max",
            spec.sessions_max,
            1,
            min(ENGINE_SESSIONS_MAX, int(L.llama_max_parallel_sequences())),
        ),
        ("outputs_max", spec.outputs_max, 0, ENGINE_BATCH_ROWS_MAX),
        ("threads", spec.threads, 0, ENGINE_THREADS_MAX),
        ("threads_batch", spec.threads_batch, 0, ENGINE_THREADS_MAX),
        ("gpu_layers", spec.gpu_layers, -1, GPU_LAYERS_ALL),
        ("main_gpu", spec.main_gpu, 0, 64),
        ("rank", spec.rank, 0, spec.ranks - 1),
        ("prefix_bytes_max", spec.prefix_bytes_max, 0, 2 * PREFIX_BYTES_MAX),
    )
    for name, value, low, high in bounds:
        if not isinstance(value, int) or not low <= value <= high:
            raise RequestError(f"{name} is {value}, must be from {low} to {high}")
    if 0 < spec.outputs_max < spec.sessions_max:
        raise RequestError(f"outputs_max is {spec.outputs_max}, must be 0 or at least one for each session")
    choices = (
        ("load_mode", spec.load_mode, LOAD_MODES), ("split_mode", spec.split_mode, SPLIT_MODES),
        ("kv_type_k", spec.kv_type_k, KV_TYPES), ("kv_type_v", spec.kv_type_v, KV_TYPES),
        ("flash_attention", spec.flash_attention, FLASH), ("rope_scaling", spec.rope_scaling, ROPE_SCALING),
        ("pooling", spec.pooling, POOLING), ("rows_dtype", spec.rows_dtype, _ROWS_DTYPES),
        ("input", spec.input, _INPUTS), ("output", spec.output, _OUTPUTS), ("rows_out", spec.rows_out, _ROWS_OUT),
    )  # fmt: skip
    for name, choice, known in choices:
        if not isinstance(choice, str) or choice not in known:
            raise RequestError(f"{name} is {choice!r}, must be one of {', '.join(known)}")
    for endpoint in spec.rpc_endpoints:
        if not endpoint.startswith("127.0.0.1:"):
            raise RequestError(f"llama.cpp's RPC is only spoken on loopback, not with {endpoint}")
    if not isinstance(spec.resident_bytes_max, int) or spec.resident_bytes_max < 0:
        raise RequestError("resident_bytes_max must be a number of bytes")
    if (spec.model_path is None) == (not spec.pieces):
        raise RequestError("a unit is either a file or pieces")
    if spec.output == "rows" and not spec.tap:
        raise RequestError("a unit whose output is rows needs the name of its tap")
    if spec.kv_type_v in _KV_QUANTISED and spec.flash_attention == "off":
        raise RequestError("a quantised value cache needs flash attention")
