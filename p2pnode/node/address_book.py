"""Where members were last reached: a forgettable file beside the record."""

from __future__ import annotations

import json
from pathlib import Path

from p2pnode import limits
from p2pnode.models.files import write_atomic


class AddressBook:
    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "addresses.json"

    def remembered(self) -> dict[str, list[str]]:
        """By peer; a damaged file is the same as none."""
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {
            str(peer): [str(a) for a in addresses[: limits.PEER_ADDRESSES_MAX]]
            for peer, addresses in found.items()
            if isinstance(addresses, list)
        }

    def remember(self, addresses: dict[str, list[str]]) -> None:
        """Written when something changed: a node that is killed shall find the others as well."""
        before = self.remembered()
        merged = {**before, **addresses}
        if merged != before:
            write_atomic(self._path, json.dumps(merged, indent=1).encode())
