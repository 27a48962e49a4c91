"""Models of other meshes: what their members tell, whose answer is asked for by which name, and when. Pure.

Another mesh serves whole answers or none: its layers are never planned with. Source: specs/10-plans.md#other-meshes
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from p2pnode import limits
from p2pnode.errors import (
    Busy,
    EngineUnavailable,
    ModelIncomplete,
    NoPlan,
    OutOfMemory,
    P2PNodeError,
    RemoteProtocolError,
    StageLost,
    TransportError,
)

Beyond = Literal["needed", "full", "never"]
SETTING = "serve.meshes"
WORDS: tuple[Beyond, ...] = ("needed", "full", "never")
MARK = "@"

_CANNOT = (NoPlan, ModelIncomplete, OutOfMemory, StageLost, EngineUnavailable, TransportError)
"""What says that this mesh cannot answer now, and nothing of the request."""

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Short = Annotated[str, Meta(max_length=128)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class ToldModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as a member of another mesh tells it; `specs/05-messages.md`."""

    name: Name
    manifest: Short = ""
    """Content id; empty for what an external server there computes."""
    complete: bool = False
    """Whether that very member has all of it."""
    default: bool = False
    external: bool = False
    architecture: Short = ""
    quantisation: Short | None = None
    size_bytes: Count | None = None
    layers: Count | None = None
    context_length: Count | None = None
    chat_template: Annotated[str, Meta(max_length=limits.TOLD_TEMPLATE_CHARACTERS_MAX)] | None = None
    bos_token: Short = ""
    eos_token: Short = ""
    add_bos: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """A model at one member of another mesh."""

    mesh_id: str
    mesh: str
    """What people here call that mesh."""
    peer: str
    model: ToldModel
    rtt_s: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.model.name}{MARK}{self.mesh}"

    @property
    def asked_as(self) -> str:
        """A content id means the same wherever it is asked for."""
        return self.model.manifest or self.model.name


def beyond_of(text: str) -> Beyond:
    """The setting; what is no word of it counts as not set."""
    return next((word for word in WORDS if word == text), "needed")


def told_model(data: Any) -> ToldModel:
    try:
        return msgspec.convert(data, ToldModel)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"a model that cannot be read: {error}") from None


def may_move(error: P2PNodeError, policy: Beyond) -> bool:
    """Whether a request that ended so here, before its first word, may go to another mesh."""
    if policy == "never":
        return False
    return isinstance(error, _CANNOT) or (policy == "full" and isinstance(error, Busy))


def split(name: str, meshes: Iterable[str]) -> tuple[str, str] | None:
    """(model, mesh) of MODEL@MESH where a mesh is called so; names of models may have the mark too."""
    model, mark, mesh = name.rpartition(MARK)
    return (model, mesh) if mark and model and mesh in meshes else None


def named(offers: Sequence[Offer], name: str | None, policy: Beyond) -> list[Offer]:
    """Who is asked for a name that nobody here has, the best first: members of one mesh with one model.

    Without the mesh's name, or without any, only where the operator allows it.
    """
    if name is not None and (found := split(name, {offer.mesh for offer in offers})) is not None:
        model, mesh = found
        return _alike([o for o in offers if o.mesh == mesh and model in (o.model.name, o.model.manifest)])
    if policy == "never":
        return []
    if name is None:
        return _alike([offer for offer in offers if offer.model.default])
    return _alike([offer for offer in offers if name in (offer.model.name, offer.model.manifest)])


def same(offers: Sequence[Offer], content_id: str) -> list[Offer]:
    """Who has the very same model, so that its words are those this mesh would have come to."""
    return in_order([offer for offer in offers if offer.model.manifest == content_id])


def in_order(offers: Iterable[Offer]) -> list[Offer]:
    """Those that have the model whole first, then the nearest."""
    return sorted(offers, key=lambda o: (not o.model.complete, o.rtt_s, o.peer))


def _alike(offers: list[Offer]) -> list[Offer]:
    ordered = in_order(offers)
    return [o for o in ordered if (o.mesh_id, o.asked_as) == (ordered[0].mesh_id, ordered[0].asked_as)]


def views(offers: Sequence[Offer]) -> list[dict[str, Any]]:
    """As faces list models."""
    rows: dict[str, dict[str, Any]] = {}
    for offer in in_order(offers):
        model = offer.model
        row = rows.setdefault(
            offer.name,
            {
                "name": offer.name,
                "mesh": offer.mesh,
                "manifest": model.manifest,
                "architecture": model.architecture,
                "quantisation": model.quantisation,
                "size_bytes": model.size_bytes,
                "layers": model.layers,
                "context_length": model.context_length,
                "external": model.external,
                "here": "no",
                "holders": [],
                "default": False,
            },
        )
        row["holders"].append(offer.peer)
    return [rows[name] for name in sorted(rows)]


def metadata(offer: Offer) -> dict[str, Any]:
    """What faces need to write a conversation as the model's own template does."""
    model = offer.model
    return {
        "architecture": model.architecture,
        "quantisation": model.quantisation,
        "size_bytes": model.size_bytes,
        "layers": model.layers,
        "context_length": model.context_length,
        "chat_template": model.chat_template,
        "bos_token": model.bos_token,
        "eos_token": model.eos_token,
        "add_bos": model.add_bos,
        "mesh": offer.mesh,
        **({"external": True} if model.external else {}),
    }
