"""Engine options as text and as values: one text for one choice, and nothing that llama.cpp would abort on."""

from __future__ import annotations

import pytest

from p2pnode.compute.engine_options import DeviceOptions, EngineOptions
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.virtual_file import InlinePiece
from p2pnode.errors import RequestError
from tests.kit.llama_runner import index_of
from tests.kit.toy_models import TOYS, Toy, model_bytes

ONE, TWO = "b" + "a" * 58, "b" + "c" * 58


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("", ""),
        ("default", ""),
        ("flash=on kv=f16", ""),
        ("kv_v=q8_0 kv_k=q8_0", "kv=q8_0"),
        ("kv_k=q4_0", "kv_k=q4_0"),
        ("rope_scale=.25 rope=linear context=4096", "context=4096 rope=linear rope_scale=0.25"),
        ("rope=yarn yarn_context=2048", "rope=yarn yarn_context=2048"),
        ("sums=f16 rows=q8_0 rpc_split=tensor", "rows=q8_0 sums=f16 rpc_split=tensor"),
        ("rows=f32 sums=f32 rpc_split=layer", ""),
        (f"lora={ONE}@0.5,{TWO}@1", f"lora={ONE}@0.5,{TWO}@1"),
    ],
)
def test_one_text_for_one_choice(given: str, text: str) -> None:
    options = EngineOptions.parse(given)
    assert options.text == text
    assert EngineOptions.parse(text) == options


@pytest.mark.parametrize(
    "text",
    [
        "kv", "kv=", "kv=q9_9", "kv=f16 kv=f16", "unknown=1", "flash=auto", "kv=q8_0 flash=off", "context=0",
        "context=1.5", "rope_scale=0.5", "rope=linear rope_scale=nan", "rope=linear rope_scale=2", "rope_base=inf",
        "rows=f64", "sums=q8_0", "sums=bf16", "rpc_split=row",
        "yarn_ext=1", "rope=linear yarn_ext=1", "lora=x", f"lora={ONE}", f"lora={ONE}@1,{ONE}@2",
        f"lora={ONE}@1 control={ONE}@1", f"lora=../{ONE}@1", "kv=f16 " * 100,
    ],
)  # fmt: skip
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        EngineOptions.parse(text)


@pytest.mark.parametrize("values", [{"kv": True}, {"context": None}, {"context": [1]}, {1: 2}])
def test_values_of_other_types_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        EngineOptions.of(values)


def test_a_head_must_be_as_wide_as_blocks_are() -> None:
    quantised = EngineOptions.parse("kv=q8_0")
    with pytest.raises(RequestError, match="a key of this model has 16"):
        quantised.check_model(index_of(model_bytes(TOYS["llama"])))
    quantised.check_model(index_of(model_bytes(Toy("llama", width=128, head_width=32))))


def test_a_row_must_be_as_wide_as_blocks_are() -> None:
    eight_bits = EngineOptions.parse("rows=q8_0")
    with pytest.raises(RequestError, match="a row of this model has 48"):
        eight_bits.check_model(index_of(model_bytes(Toy("llama", width=48, head_width=12))))
    eight_bits.check_model(index_of(model_bytes(TOYS["llama"])))


def test_bytes_on_the_wire_by_type() -> None:
    assert (EngineOptions().row_value_bytes, EngineOptions().sum_value_bytes) == (4.0, 4)
    smaller = EngineOptions.parse("rows=q8_0 sums=f16")
    assert (smaller.row_value_bytes, smaller.sum_value_bytes) == (34 / 32, 2)
    assert smaller.applied(UnitSpec(model_path="model.gguf")).rows_dtype == "q8_0"


def test_memory_by_type() -> None:
    assert EngineOptions().kv_fraction == 1.0
    assert EngineOptions.parse("kv=q8_0").kv_fraction == 34 / 64
    assert EngineOptions.parse("kv=f32").kv_fraction == 2.0


def test_positions_reach_further_when_stretched() -> None:
    assert EngineOptions.parse("rope=linear rope_scale=0.25").stretched(2048) == 8192
    assert EngineOptions().stretched(2048) == 2048


def test_adapters_come_and_go_without_touching_the_rest() -> None:
    options = EngineOptions.parse("kv=q8_0").with_adapters([(ONE, 0.5)], [(TWO, -1.0)])
    assert options.text == f"kv=q8_0 lora={ONE}@0.5 control={TWO}@-1"
    assert (options.adapters, options.control_vectors) == (((ONE, 0.5),), ((TWO, -1.0),))
    assert options.with_adapters([], []).text == "kv=q8_0"


def test_parts_are_copied_whatever_a_device_says() -> None:
    device = DeviceOptions.parse("load=mmap_mlock gpu_layers=-1")
    part, file = UnitSpec(pieces=(InlinePiece(b"x"),)), UnitSpec(model_path="model.gguf")
    assert (device.applied(part).load_mode, device.applied(file).load_mode) == ("mlock", "mmap_mlock")
    assert device.applied(part).gpu_layers == -1
    assert DeviceOptions.parse("load=copy").text == ""
    with pytest.raises(RequestError):
        DeviceOptions.parse("gpu_layers=-2")
