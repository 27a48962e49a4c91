"""How people name a model on a hub, and which of a repository's files they mean. Pure.

`hf:owner/repo`, `hf:owner/repo:Q4_K_M`, `hf:owner/repo/file.gguf`, each with `@revision`, or the address of a
file on the hub.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from p2pnode import limits
from p2pnode.errors import ModelUnknown, RequestError

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REFERENCE = re.compile(
    rf"hf:(?P<repo>{_NAME}/{_NAME}?)(?:/(?P<path>[^:@]{{1,300}}\.gguf)|:(?P<quant>[A-Za-z0-9_]{{1,20}}))?"
    r"(?:@(?P<revision>[A-Za-z0-9._/-]{1,100}))?"
)
_ADDRESS = re.compile(
    rf"https?://[^/]+/(?P<repo>{_NAME}/{_NAME})/(?:resolve|blob)/(?P<revision>[^/?#]{{1,100}})/(?P<path>[^?#]{{1,300}}\.gguf)"
    r"(?:[?#].*)?"
)
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS", "Q5_K_M", "Q8_0", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository, and what of it."""

    repo: str
    path: str | None = None
    quantisation: str | None = None
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository as the hub lists it."""

    path: str
    size: int
    sha256: str = ""
    """Empty when the listing does not tell."""


def is_reference(text: str) -> bool:
    return text.startswith("hf:") or _ADDRESS.fullmatch(text) is not None


def parse(text: str) -> HubReference:
    """Read a reference; RequestError with the grammar otherwise."""
    match = _REFERENCE.fullmatch(text) or _ADDRESS.fullmatch(text)
    if match is None or ".." in text:
        raise RequestError(
            f"{text[:100]!r} names no model on a hub",
            hint="write hf:owner/repo, hf:owner/repo:Q4_K_M or hf:owner/repo/file.gguf",
        )
    found = match.groupdict()
    return HubReference(found["repo"], found.get("path"), found.get("quant"), found.get("revision") or "main")


def choose(reference: HubReference, files: Sequence[HubFile]) -> list[HubFile]:
    """The files of one model, in order; ModelUnknown with what there is when it is not clear which."""
    models = _models(files)
    if reference.path is not None:
        wanted = [parts for parts in models.values() if any(part.path == reference.path for part in parts)]
    elif reference.quantisation is not None:
        wanted = [parts for stem, parts in models.items() if _has_quantisation(stem, reference.quantisation)]
    else:
        wanted = list(models.values()) if len(models) == 1 else _preferred(models)
    if len(wanted) != 1:
        there = ", ".join(sorted(models)[:20]) or "no GGUF file"
        what = reference.path or reference.quantisation or "one model"
        raise ModelUnknown(
            f"{reference.repo} has not exactly {what}; it has: {there}", hint="name the file you want"
        )
    return _complete(wanted[0])


def _models(files: Sequence[HubFile]) -> dict[str, list[HubFile]]:
    """GGUF files by model: parts of a split together, projectors left out."""
    models: dict[str, list[HubFile]] = {}
    for file in sorted(files, key=lambda f: f.path):
        name = file.path.rsplit("/", 1)[-1]
        if not name.endswith(".gguf") or name.startswith("mmproj"):
            continue
        match = _SPLIT.fullmatch(file.path)
        models.setdefault(match["stem"] if match else file.path.removesuffix(".gguf"), []).append(file)
    return models


def _has_quantisation(stem: str, quantisation: str) -> bool:
    return re.search(rf"(?:^|[-._/]){re.escape(quantisation)}(?:$|[-._/])", stem, re.IGNORECASE) is not None


def _preferred(models: dict[str, list[HubFile]]) -> list[list[HubFile]]:
    for quantisation in _PREFERRED:
        found = [parts for stem, parts in models.items() if _has_quantisation(stem, quantisation)]
        if found:
            return found
    return []


def _complete(parts: list[HubFile]) -> list[HubFile]:
    match = _SPLIT.fullmatch(parts[0].path)
    if match is not None and len(parts) != int(match["count"]):
        raise ModelUnknown(f"the hub has {len(parts)} of {int(match['count'])} parts of {match['stem']}")
    if len(parts) > limits.MODEL_FILES_MAX or min(part.size for part in parts) <= 0:
        raise ModelUnknown(f"{parts[0].path} is listed without a usable size")
    return parts
