"""llama.cpp's C side as this project needs it: the binding's structures plus ggml calls it lacks.

The binding's package imports its whole high-level API (web server types, templates, numpy); an engine
needs only its ctypes declarations, so the package body is skipped. Every symbol is looked up in the
binding's one library handle: opening libggml by path would load a second copy with its own registry.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias

from p2pnode.errors import EngineIncompatible

BINDING = "llama_cpp"
KNOWN_VERSION = "install the llama-cpp-python version named in pyproject.toml"
"""What helps against every library that is not as expected."""

TENSOR_TYPE = 0
TENSOR_NE = 16
TENSOR_NB = 48
TENSOR_SOURCE = 152
TENSOR_DATA = 248
TENSOR_NAME = 256
TENSOR_NAME_BYTES = 64
"""Offsets in `struct ggml_tensor` on 64-bit machines: not a stable ABI, proved by `check_tensor_layout`."""

GGML_TYPE_F32 = 0
GGML_TYPE_F16 = 1
_DEVICE_GPU = 1
"""ggml's kind of a device with memory of its own; integrated ones share the machine's."""

_void_p, _size_t, _i64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
_GGML: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_tensor_get": (None, [_void_p, _void_p, _size_t, _size_t]),
    "ggml_backend_tensor_set": (None, [_void_p, _void_p, _size_t, _size_t]),
    "ggml_nbytes": (_size_t, [_void_p]),
    "ggml_type_size": (_size_t, [ctypes.c_int]),
    "ggml_blck_size": (_i64, [ctypes.c_int]),
    "ggml_row_size": (_size_t, [ctypes.c_int, _i64]),
    "ggml_init": (_void_p, [_size_t, _void_p, ctypes.c_bool]),
    "ggml_free": (None, [_void_p]),
    "ggml_new_tensor_2d": (_void_p, [_void_p, ctypes.c_int, _i64, _i64]),
    "ggml_set_name": (_void_p, [_void_p, ctypes.c_char_p]),
    "ggml_neg": (_void_p, [_void_p, _void_p]),
    "ggml_get_name": (ctypes.c_char_p, [_void_p]),
    "ggml_get_data": (_void_p, [_void_p]),
    "ggml_tensor_overhead": (_size_t, []),
    "ggml_get_type_traits": (_void_p, [ctypes.c_int]),
    "ggml_backend_dev_count": (_size_t, []),
    "ggml_backend_dev_get": (_void_p, [_size_t]),
    "ggml_backend_dev_name": (ctypes.c_char_p, [_void_p]),
    "ggml_backend_dev_by_name": (_void_p, [ctypes.c_char_p]),
    "ggml_backend_dev_type": (ctypes.c_int, [_void_p]),
    "ggml_backend_dev_memory": (None, [_void_p, ctypes.POINTER(_size_t), ctypes.POINTER(_size_t)]),
    "ggml_backend_reg_dev_get": (_void_p, [_void_p, _size_t]),
    "ggml_backend_register": (None, [_void_p]),
    "ggml_backend_reg_by_name": (_void_p, [ctypes.c_char_p]),
    "ggml_backend_reg_get_proc_address": (_void_p, [_void_p, ctypes.c_char_p]),
}


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _size_t), ("mem_buffer", _void_p), ("no_alloc", ctypes.c_bool))


def load_binding() -> ModuleType:
    """The binding's ctypes module, without the rest of its package."""
    if BINDING not in sys.modules:
        spec = importlib.util.find_spec(BINDING)
        if spec is None or spec.submodule_search_locations is None:
            raise EngineIncompatible("llama-cpp-python is not installed", hint="run: make setup")
        package = ModuleType(BINDING)
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec  # who asks where the package lies in this same process gets an answer
        sys.modules[BINDING] = package
    try:
        with _hidden("typing_extensions", TypeAlias=TypeAlias):  # half a megabyte for this one name
            return importlib.import_module(f"{BINDING}.llama_cpp")
    except (ImportError, OSError, RuntimeError, AttributeError) as exc:
        raise EngineIncompatible(
            f"llama.cpp's library cannot be loaded: {exc}", hint="run: make setup"
        ) from exc


@contextmanager
def _hidden(name: str, **instead: Any) -> Iterator[None]:
    """Whoever imports a module meanwhile gets these names and nothing else, unless it is loaded already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__dict__.update(instead)
    try:
        yield
    finally:
        del sys.modules[name]


def declare_ggml(lib: ctypes.CDLL) -> None:
    """Give every ggml call we make its types; refuses a library that lacks one."""
    for name, (result, arguments) in _GGML.items():
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise EngineIncompatible(f"llama.cpp's library has no {name}", hint=KNOWN_VERSION) from None
        function.restype, function.argtypes = result, arguments
    lib.ggml_init.argtypes = [_InitParams]


def tensor_name(tensor: int) -> bytes:
    return ctypes.string_at(tensor + TENSOR_NAME)


def source_name(tensor: int) -> bytes:
    """Name of a tensor's first operand: of a product, its weight."""
    source = _void_p.from_address(tensor + TENSOR_SOURCE).value
    return tensor_name(source) if source else b""


def tensor_shape(tensor: int) -> tuple[int, int, int, int]:
    ne = (_i64 * 4).from_address(tensor + TENSOR_NE)
    return ne[0], ne[1], ne[2], ne[3]


def tensor_type(tensor: int) -> int:
    return ctypes.c_int.from_address(tensor + TENSOR_TYPE).value


def check_tensor_layout(lib: ctypes.CDLL) -> None:
    """Make one tensor by ggml's own calls and find its fields where we read them.

    Nothing found is followed: in an unknown layout it is no pointer, and the process would end without a word.
    """
    overhead = lib.ggml_tensor_overhead()
    if overhead <= TENSOR_NAME + TENSOR_NAME_BYTES:
        raise _unknown_layout("size")
    context = lib.ggml_init(_InitParams(overhead * 4 + 4096, None, False))
    if not context:
        raise EngineIncompatible("ggml gives no context for the layout check")
    try:
        tensor = lib.ggml_new_tensor_2d(context, GGML_TYPE_F32, 7, 3)
        lib.ggml_set_name(tensor, b"l_out-41")
        made = lib.ggml_neg(context, tensor)
        seen = {
            "type": tensor_type(tensor),
            "shape": tensor_shape(tensor),
            "name": ctypes.string_at(tensor + TENSOR_NAME, TENSOR_NAME_BYTES).rstrip(b"\0"),
            "data": _void_p.from_address(tensor + TENSOR_DATA).value,
            "strides": tuple((_size_t * 4).from_address(tensor + TENSOR_NB)),
            "source": _void_p.from_address(made + TENSOR_SOURCE).value,
        }
        expected = {
            "type": GGML_TYPE_F32,
            "shape": (7, 3, 1, 1),
            "name": b"l_out-41",
            "data": lib.ggml_get_data(tensor),
            "strides": (4, 28, 84, 84),
            "source": tensor,
        }
    finally:
        lib.ggml_free(context)
    moved = [field for field in expected if seen[field] != expected[field]]
    if moved:
        raise _unknown_layout(", ".join(moved))


def _unknown_layout(what: str) -> EngineIncompatible:
    return EngineIncompatible(
        f"this llama.cpp keeps tensors in a layout we do not know: {what}", hint=KNOWN_VERSION
    )


def _start() -> tuple[Any, Any]:
    binding = load_binding()
    lib: Any = binding._lib
    declare_ggml(lib)
    check_tensor_layout(lib)
    binding.llama_backend_init()
    return binding, lib


def gpu_memory() -> tuple[int, int]:
    """Free and total bytes of all GPUs with memory of their own; (0, 0) where this llama.cpp knows of none."""
    free, total, size = 0, 0, (ctypes.c_size_t(), ctypes.c_size_t())
    for number in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(number)
        if lib.ggml_backend_dev_type(device) == _DEVICE_GPU:
            lib.ggml_backend_dev_memory(device, ctypes.byref(size[0]), ctypes.byref(size[1]))
            free, total = free + size[0].value, total + size[1].value
    return free, total


L, lib = _start()
"""The binding's functions and its library handle."""
