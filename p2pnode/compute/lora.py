"""LoRA adapters, cut like the model they belong to.

llama.cpp refuses an adapter with a tensor that its model has not, so each part gets the pairs of its own layers,
renumbered; a shard gets the rows of `lora_b` (or columns of `lora_a`) that its own rows (or columns) need.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from p2pnode.compute.architectures import architecture_of
from p2pnode.compute.gguf_values import Entry, ModelIndex, TensorInfo, ValueType, scalar
from p2pnode.compute.new_tensor import NewTensor, original
from p2pnode.compute.part import Part, VirtualFile, check_part, whole
from p2pnode.compute.shard import ShardPlan
from p2pnode.compute.surgery import shard_plan, tensors_by_layer, virtual_file
from p2pnode.errors import ArchitectureUnsupported, BadModelFile

Pairs = dict[str, tuple[TensorInfo, TensorInfo]]

_PAIR = re.compile(r"(?P<base>.+)\.lora_(?P<side>[ab])")
_LAYER = re.compile(r"blk\.(?P<layer>\d{1,9})\.(?P<suffix>.+)")


def cut_adapter(adapter: ModelIndex, base: ModelIndex, part: Part) -> VirtualFile | None:
    """The adapter for one part of its model; None where it changes nothing there.

    Raises: BadModelFile for what is no adapter of this model, ArchitectureUnsupported with the reason, PlanError
    """
    check_part(base, part)
    _check_kind(adapter, base)
    pairs = _pairs(adapter, base)
    _check_ends(pairs, base, part)
    if part == whole(base):
        tensors = [original(tensor) for tensor in adapter.tensors.values()]
        return virtual_file(list(adapter.metadata.values()), tensors, adapter.alignment)
    row = architecture_of(base)
    found = tensors_by_layer(base, range(part.layer_first, part.layer_end))
    shard = shard_plan(row, base, part, found) if part.shard and part.layer_count else None
    tensors = list(_layers(pairs, part, shard, row.name))
    if not tensors:
        return None
    entries = list(adapter.metadata.values())
    if shard is not None and row.shard_as:
        entries = [_renamed(entry, row.shard_as) for entry in entries]
    return virtual_file(entries, tensors, adapter.alignment)


def _renamed(entry: Entry, architecture: str) -> Entry:
    if entry.key != "general.architecture":
        return entry
    return scalar(entry.key, ValueType.STRING, architecture)


def _check_kind(adapter: ModelIndex, base: ModelIndex) -> None:
    if adapter.get("general.type") != "adapter" or adapter.get("adapter.type") != "lora":
        raise BadModelFile("the file is not a LoRA adapter", hint="convert it with convert_lora_to_gguf.py")
    if adapter.architecture != base.architecture:
        raise BadModelFile(
            f"the adapter is for {adapter.architecture} models, this is {base.architecture}",
            hint="choose the model the adapter was trained on",
        )


def _pairs(adapter: ModelIndex, base: ModelIndex) -> Pairs:
    """By the changed tensor's name: `lora_a` and `lora_b`, whose sizes fit it and each other."""
    sides: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in adapter.tensors.items():
        match = _PAIR.fullmatch(name)
        if match:
            sides.setdefault(match["base"], {})[match["side"]] = tensor
        elif not name.endswith("_norm.weight"):  # llama.cpp passes over these
            raise BadModelFile(
                f"the adapter's tensor {name} is no part of a LoRA pair", hint="convert it again"
            )
    pairs = {}
    for name, pair in sides.items():
        target = base.tensors.get(name)
        if len(pair) != 2 or target is None or not _fits(name, target, pair["a"], pair["b"]):
            raise BadModelFile(
                f"the adapter's {name} does not fit this model",
                hint="choose the model the adapter was trained on",
            )
        pairs[name] = (pair["a"], pair["b"])
    return pairs


def _fits(name: str, target: TensorInfo, a: TensorInfo, b: TensorInfo) -> bool:
    if min(len(target.shape), len(a.shape), len(b.shape)) < 2:
        return False
    if name == "token_embd.weight":
        return (target.shape[0], target.shape[1]) == (b.shape[1], a.shape[1])
    rank_agrees = a.shape[1] == b.shape[0]
    return rank_agrees and (target.shape[0], target.shape[1]) == (a.shape[0], b.shape[1])


def _check_ends(pairs: Pairs, base: ModelIndex, part: Part) -> None:
    """Changes of the embedding and of the output matrix follow neither into cuts nor into tied models.

    A model without `output.weight` multiplies with its embedding: llama.cpp then takes a change of the one for a
    change of the other, and aborts over its shape.
    """
    is_whole = part == whole(base)
    reason = ""
    if "output.weight" in pairs and part.output and not is_whole:
        reason = "it changes the output matrix, which a cut stores under another name"
    if "token_embd.weight" in pairs and (not is_whole or "output.weight" not in base.tensors):
        reason = "it changes the embedding, which llama.cpp takes for the output matrix too"
    if reason:
        raise ArchitectureUnsupported(
            f"this adapter cannot be used like this: {reason}",
            hint="run the model whole, or choose another adapter",
            reason=reason,
        )


def _layers(pairs: Pairs, part: Part, shard: ShardPlan | None, name: str) -> Iterator[NewTensor]:
    for base, (a, b) in pairs.items():
        match = _LAYER.fullmatch(base)
        layer = int(match["layer"]) if match else -1
        if match is None or not part.layer_first <= layer < part.layer_end:
            continue
        suffix = match["suffix"]
        local = f"blk.{layer - part.layer_first}.{suffix}"
        if shard is None:
            yield from (original(a, f"{local}.lora_a"), original(b, f"{local}.lora_b"))
        elif suffix in ("attn_output.weight", "ffn_down.weight"):
            raise ArchitectureUnsupported(
                f"this adapter cannot be cut for {name} like this: {suffix} changes after the sum over devices",
                hint="run the model whole or as a pipeline",
                reason="its changes are not summed over devices",
            )
        elif suffix == "ffn_down_exps.weight":
            yield shard.tensor(layer, suffix, a, f"{local}.lora_a")
            yield original(b, f"{local}.lora_b")
        else:
            yield original(a, f"{local}.lora_a")
            yield shard.tensor(layer, suffix, b, f"{local}.lora_b")
