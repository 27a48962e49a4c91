"""What this device tells those who may ask it for whole answers: its models, and for guests whom else they may ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pnode import limits
from p2pnode.node.backends import Backends
from p2pnode.node.catalog import Catalog
from p2pnode.node.mesh import Mesh
from p2pnode.units import PeerId


class Offering:
    def __init__(
        self,
        *,
        me: PeerId,
        name: str,
        mesh: Mesh,
        catalog: Catalog,
        backends: Backends,
        addresses: Callable[[], list[str]],
        where: Callable[[], dict[str, list[str]]],
    ) -> None:
        self._me, self._name = me, name
        self._mesh = mesh
        self._catalog = catalog
        self._backends = backends
        self._addresses = addresses
        self._where = where

    def models(self) -> list[dict[str, Any]]:
        """What this device can have answered, by itself or with others of its mesh; the default one is marked."""
        known = [model for model in self._catalog.known() if model.is_complete_here or model.holders]
        default = self._catalog.resolve(None).content_id if known else ""
        told = []
        for each in known:
            about = self._catalog.metadata(each)
            template = str(about.get("chat_template") or "")
            if len(template) > limits.TOLD_TEMPLATE_CHARACTERS_MAX:
                continue  # nobody could write a conversation for it
            row = {
                "manifest": each.content_id,
                "complete": each.is_complete_here,
                "default": each.content_id == default,
                "architecture": str(about.get("architecture") or ""),
                "quantisation": about.get("quantisation"),
                "size_bytes": about.get("size_bytes"),
                "layers": about.get("layers"),
                "context_length": about.get("context_length"),
                "chat_template": template or None,
                "bos_token": str(about.get("bos_token") or ""),
                "eos_token": str(about.get("eos_token") or ""),
                "add_bos": bool(about.get("add_bos")),
            }
            told += [{"name": name, **row} for name in each.names]
        told += [
            {
                "name": view["name"],
                "complete": True,
                "external": True,
                "architecture": str(view["architecture"]),
                "quantisation": view["quantisation"],
                "size_bytes": view["size_bytes"],
                "context_length": view["context_length"],
            }
            for view in self._backends.views()
            if self._backends.here(view["name"])
        ]
        return told[: limits.TOLD_MODELS_MAX]

    def about(self) -> dict[str, Any]:
        """This device, and by whose grants and addresses a guest finds the other members."""
        membership = self._mesh.membership
        return {
            "name": self._name,
            "mesh_name": self._mesh.mesh_name,
            "grants": self._mesh.grants_for_guests() if membership else [],
            "revocations": membership.export_revocations() if membership else [],
            "peers": [
                {"peer": peer, "addresses": addresses}
                for peer, addresses in ({self._me: self._addresses(), **self._where()}).items()
            ],
        }
