"""A device that announces itself by mDNS and prints each other it hears: python nearby_peer.py NAME ADDRESS."""

from __future__ import annotations

import asyncio
import json
import sys

from p2pnode.errors import TransportError
from p2pnode.transport.discovery import Discovery
from tests.kit.net import identity


async def main(name: str, address: str) -> None:
    early: list[str] | None = []
    """Heard while the announcement was under way; told after the word that it started."""

    def heard(peer: str, addresses: list[str]) -> None:
        line = json.dumps({"peer": peer, "addresses": addresses})
        if early is None:
            print(line, flush=True)
        else:
            early.append(line)

    discovery = Discovery(identity(name).peer_id, lambda: [address], heard)
    try:
        await discovery.start()
    except TransportError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}), flush=True)
        return
    print("\n".join([json.dumps({"started": name}), *early]), flush=True)
    early = None
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await discovery.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
