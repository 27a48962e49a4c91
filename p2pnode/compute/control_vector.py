"""Control vectors in llama.cpp's GGUF form: one direction per layer, added to what the layer gives.

llama.cpp never adds one to the first layer it computes, which in a cut would be a layer from the middle: they act
where one device has all layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from p2pnode.compute.ggml_types import F32
from p2pnode.compute.gguf_values import ModelIndex
from p2pnode.compute.part import Part, real_layer_count
from p2pnode.errors import BadModelFile, PlanError

ARCHITECTURE = "controlvector"
_DIRECTION = re.compile(r"direction\.(\d{1,6})")


def is_control_vector(index: ModelIndex) -> bool:
    return bool(index.get("general.architecture") == ARCHITECTURE)


def check(index: ModelIndex, base: ModelIndex) -> None:
    """BadModelFile for what does not fit this model."""
    width, layers = base.parameter_int("embedding_length"), real_layer_count(base)
    hint = base.architecture
    made_for = index.get("controlvector.model_hint", hint)
    if made_for not in ("", hint):
        raise BadModelFile(f"the control vector is for {made_for} models, this is {hint}")
    if not index.tensors:
        raise BadModelFile("the control vector has no direction")
    for tensor in index.tensors.values():
        match = _DIRECTION.fullmatch(tensor.name)
        fits = match and 0 < int(match[1]) < layers and tensor.type == F32 and tensor.shape == (width,)
        if not fits:
            raise BadModelFile(
                f"the control vector's {tensor.name} does not fit this model",
                hint=f"directions 1 to {layers - 1} of {width} float32 values are needed",
            )


def rows(index: ModelIndex, base: ModelIndex, read: Callable[[int, int], bytes]) -> bytes:
    """Float32 for layers 1, 2, ..., zeros where there is no direction; `read` takes offset and size."""
    check(index, base)
    blank = bytes(4 * base.parameter_int("embedding_length"))
    found = {name: read(tensor.offset, tensor.size) for name, tensor in index.tensors.items()}
    return b"".join(found.get(f"direction.{layer}", blank) for layer in range(1, real_layer_count(base)))


def check_part(base: ModelIndex, part: Part) -> None:
    """PlanError where the layers of a model are on several devices."""
    if part.shard is not None or (part.layer_first, part.layer_end) != (0, real_layer_count(base)):
        raise PlanError(
            "a control vector acts only where one device has all layers",
            hint="choose mode local, or remove it: p2pnode adapters list",
        )
