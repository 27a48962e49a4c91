"""How a model is loaded, as a person chooses it: what all devices of a plan do alike, and what each does for itself.

The text form (`kv=q8_0 rope=yarn rope_scale=0.25`) is the same in settings, in plans and in stage orders; what stands
at its default is left out, so equal choices are equal texts. Everything is checked here, before llama.cpp sees it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, get_args

from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.ggml_types import TENSOR_TYPES
from p2pnode.compute.gguf_values import ModelIndex
from p2pnode.errors import RequestError
from p2pnode.limits import (
    ADAPTERS_MAX,
    ENGINE_CONTEXT_TOKENS_MAX,
    ENGINE_OPTIONS_CHARACTERS_MAX,
    GPU_LAYERS_ALL,
)

_TYPES = {kind.name.lower(): kind for kind in TENSOR_TYPES.values()}
KvType = Literal["f16", "q8_0", "q4_0", "f32", "bf16"]
RowsType = Literal["f32", "f16", "bf16", "q8_0"]
SumsType = Literal["f32", "f16"]
LoadMode = Literal["copy", "mlock", "mmap", "mmap_mlock"]
_F16_BYTES = 2
ADAPTER_ID = "b[a-z2-7]{58}"
_SCALE = r"-?\d{1,3}(\.\d{1,6})?"
_NAMED = (f"{ADAPTER_ID}@{_SCALE}(,{ADAPTER_ID}@{_SCALE})*", "adapters as ID@SCALE,ID@SCALE")
Lora = tuple[str, float]
"""Content id of an adapter file, and how strongly it acts."""


@dataclass(frozen=True, slots=True)
class _Options:
    """Fields, their text and their bounds; subclasses give each field a default."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}
    patterns: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """A regular expression, and in words what it allows."""
    both: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """A word that sets two fields."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """RequestError says which word is wrong; the empty text and `default` are the defaults."""
        if len(text) > ENGINE_OPTIONS_CHARACTERS_MAX:
            raise RequestError(f"engine options have at most {ENGINE_OPTIONS_CHARACTERS_MAX} characters")
        values: dict[str, str] = {}
        for word in text.split() if text.strip() != "default" else ():
            name, equals, value = word.partition("=")
            if not equals or name in values:
                raise RequestError(f"{word[:80]!r} is no engine option", hint="write for example kv=q8_0")
            values[name] = value
        return cls.of(values)

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """From names and values, as a JSON object has them."""
        found: dict[str, Any] = {}
        defaults = {item.name: item.default for item in fields(cls)}
        known = (*cls.both, *defaults)
        for name, value in values.items():
            if name not in known:
                raise RequestError(
                    f"{str(name)[:80]!r} is no engine option", hint=f"options are {', '.join(known)}"
                )
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise RequestError(f"the engine option {name} is text or a number", param="engine")
            for field in cls.both.get(name, (name,)):
                found[field] = cls._value(name, field, str(value), defaults[field])
        make: Any = cls
        made: Self = make(**found)
        return made._checked()

    @classmethod
    def _value(cls, name: str, field: str, text: str, default: Any) -> object:
        if field in cls.choices:
            if text not in cls.choices[field]:
                raise RequestError(f"{name} is {text[:40]!r}, must be one of {', '.join(cls.choices[field])}")
            return text
        if field in cls.patterns:
            pattern, words = cls.patterns[field]
            if not re.fullmatch(pattern, text):
                raise RequestError(f"{name} is {text[:40]!r}, must be {words}")
            return text
        low, high = cls.bounds[field]
        kind = type(default)
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            whole = "a whole number" if kind is int else "a number"
            raise RequestError(f"{name} is {text[:40]!r}, must be {whole} from {low:g} to {high:g}")
        return number

    def _checked(self) -> Self:
        return self

    @property
    def text(self) -> str:
        """What differs from the defaults, in the order of the fields."""
        given = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name) != item.default
        }
        words: list[str] = []
        for name, (first, second) in self.both.items():
            if first in given and given[first] == given.get(second):
                words.append(f"{name}={given.pop(first)}")
                del given[second]
        return " ".join([*words, *(f"{name}={_plain(value)}" for name, value in given.items())])


def _named(text: str) -> tuple[Lora, ...]:
    found = (word.partition("@") for word in text.split(",") if word)
    return tuple((identity, float(scale)) for identity, _, scale in found)


def _words(adapters: Sequence[Lora]) -> str:
    return ",".join(f"{identity}@{scale:.6f}".rstrip("0").rstrip(".") for identity, scale in adapters)


def _plain(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class EngineOptions(_Options):
    """What every device of a plan must do alike."""

    kv_k: KvType = "f16"
    kv_v: KvType = "f16"
    flash: Literal["on", "off"] = "on"
    context: int = 0
    """Positions of all sessions together; 0 for what the memory set aside holds."""
    rope: Literal["model", "none", "linear", "yarn"] = "model"
    rope_base: float = 0.0
    rope_scale: float = 0.0
    """Positions are multiplied by it: 0.25 makes four times the context of the model."""
    yarn_ext: float = -1.0
    yarn_attn: float = -1.0
    yarn_beta_fast: float = -1.0
    yarn_beta_slow: float = -1.0
    yarn_context: int = 0
    """Context the model was made for, where its file does not say."""
    rows: RowsType = "f32"
    """Of the rows that stages send each other; f32 is exact."""
    sums: SumsType = "f32"
    """Of the partial sums that ranks of a tensor group exchange; f32 is exact."""
    rpc_split: Literal["layer", "tensor"] = "layer"
    """How llama.cpp's RPC divides the model among its workers: whole layers, or every matrix by rows."""
    lora: str = ""
    """Adapters, `ID@SCALE,...`; written by the commands that add and remove them."""
    control: str = ""
    """Control vectors, likewise."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "kv_k": get_args(KvType),
        "kv_v": get_args(KvType),
        # "auto" could mean one thing on one device and another on the next
        "flash": ("on", "off"),
        "rope": ("model", "none", "linear", "yarn"),
        "rows": get_args(RowsType),
        "sums": get_args(SumsType),
        "rpc_split": ("layer", "tensor"),
    }
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "context": (256, ENGINE_CONTEXT_TOKENS_MAX),
        "rope_base": (1.0, 1e9),
        "rope_scale": (1 / 1024, 1.0),
        "yarn_ext": (0.0, 100.0),
        "yarn_attn": (0.0, 100.0),
        "yarn_beta_fast": (0.0, 1000.0),
        "yarn_beta_slow": (0.0, 1000.0),
        "yarn_context": (1, ENGINE_CONTEXT_TOKENS_MAX),
    }
    patterns: ClassVar[Mapping[str, tuple[str, str]]] = {"lora": _NAMED, "control": _NAMED}
    both: ClassVar[Mapping[str, tuple[str, str]]] = {"kv": ("kv_k", "kv_v")}

    def _checked(self) -> Self:
        if self.flash == "off" and _TYPES[self.kv_v].block_elements > 1:
            raise RequestError(f"values kept as {self.kv_v} need flash attention", hint="leave flash=off out")
        if self.rope not in ("linear", "yarn") and self.rope_scale:
            raise RequestError("rope_scale stretches positions only with rope=linear or rope=yarn")
        yarn = [item for item in fields(self) if item.name.startswith("yarn_")]
        if self.rope != "yarn" and any(getattr(self, item.name) != item.default for item in yarn):
            raise RequestError("options that begin with yarn_ need rope=yarn")
        named = [identity for identity, _ in (*self.adapters, *self.control_vectors)]
        if len(set(named)) != len(named) or len(named) > ADAPTERS_MAX:
            raise RequestError(f"each adapter once, at most {ADAPTERS_MAX}")
        return self

    @property
    def adapters(self) -> tuple[Lora, ...]:
        return _named(self.lora)

    @property
    def control_vectors(self) -> tuple[Lora, ...]:
        return _named(self.control)

    @property
    def without_adapters(self) -> EngineOptions:
        """Equal for two choices that the same loaded weights serve."""
        return replace(self, lora="")

    def with_adapters(self, adapters: Sequence[Lora], control_vectors: Sequence[Lora]) -> EngineOptions:
        made = replace(self, lora=_words(adapters), control=_words(control_vectors))
        return EngineOptions.parse(made.text)

    def check_model(self, index: ModelIndex) -> None:
        """RequestError where this model's heads cannot be kept like this, or its rows not be sent."""
        block = _TYPES[self.rows].block_elements
        if block > 1 and (width := index.parameter_int("embedding_length")) % block:
            raise RequestError(
                f"rows={self.rows} sends {block} values together, and a row of this model has {width}",
                hint="use rows=f16",
            )
        for side, kind in (("key", self.kv_k), ("value", self.kv_v)):
            block = _TYPES[kind].block_elements
            if block == 1:
                continue
            heads = max(1, *index.parameter_ints("attention.head_count", 1))
            width = index.parameter_int("embedding_length") // heads
            size = index.parameter_int(f"attention.{side}_length", width)
            if size % block:
                raise RequestError(
                    f"{kind} keeps {block} values together, and a {side} of this model has {size}",
                    hint="use kv=f16",
                )

    @property
    def kv_fraction(self) -> float:
        """Memory of keys and values, as a part of what they need in float16."""
        kinds = (_TYPES[self.kv_k], _TYPES[self.kv_v])
        return sum(kind.block_bytes / kind.block_elements for kind in kinds) / (2 * _F16_BYTES)

    @property
    def row_value_bytes(self) -> float:
        """Of one value in a row that goes to the next stage."""
        kind = _TYPES[self.rows]
        return kind.block_bytes / kind.block_elements

    @property
    def sum_value_bytes(self) -> int:
        """Of one value in a partial sum."""
        return _TYPES[self.sums].block_bytes

    def stretched(self, context_length: int) -> int:
        """Positions a model may reach whose file says `context_length`."""
        return int(context_length / self.rope_scale) if self.rope_scale else context_length

    def applied(self, spec: UnitSpec) -> UnitSpec:
        return replace(
            spec,
            kv_type_k=self.kv_k,
            kv_type_v=self.kv_v,
            rows_dtype=self.rows,
            flash_attention=self.flash,
            rope_scaling=self.rope,
            rope_freq_base=self.rope_base,
            rope_freq_scale=self.rope_scale,
            yarn_ext_factor=self.yarn_ext,
            yarn_attn_factor=self.yarn_attn,
            yarn_beta_fast=self.yarn_beta_fast,
            yarn_beta_slow=self.yarn_beta_slow,
            yarn_orig_context=self.yarn_context,
        )


@dataclass(frozen=True, slots=True)
class DeviceOptions(_Options):
    """What each device decides for everything it loads."""

    gpu_layers: int = 0
    """Layers computed by the GPU; -1 for all."""
    main_gpu: int = 0
    split: Literal["none", "layer", "row"] = "layer"
    load: LoadMode = "copy"
    """`mmap` keeps a whole model in the system's page cache; parts of models are always copied."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "split": ("none", "layer", "row"),
        "load": get_args(LoadMode),
    }
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "gpu_layers": (-1, GPU_LAYERS_ALL),
        "main_gpu": (0, 64),
    }

    @property
    def maps_files(self) -> bool:
        return self.load.startswith("mmap")

    def applied(self, spec: UnitSpec) -> UnitSpec:
        """Of a unit made of byte ranges: there is no file that could be mapped."""
        load = self.load
        if spec.model_path is None:
            load = "mlock" if load.endswith("mlock") else "copy"
        return replace(
            spec, gpu_layers=self.gpu_layers, main_gpu=self.main_gpu, split_mode=self.split, load_mode=load
        )


DEFAULTS, DEVICE_DEFAULTS = EngineOptions(), DeviceOptions()
