"""The engine process: units of llama.cpp behind one socket; it may die without the node dying.

Started by `engine_client` as `python -m p2pnode.compute.engine FD FD`. Its first message is a hello, or the
condition that keeps it from working here (no library, a llama.cpp of unknown layout).
"""

from __future__ import annotations

import ctypes
import signal
import socket
import sys

from p2pnode import heap
from p2pnode.compute.engine_channel import Channel, NodeGoneError
from p2pnode.compute.engine_protocol import error_fields
from p2pnode.errors import EngineUnavailable, P2PNodeError

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Two descriptors: this process's ends of the message and the side socketpair."""
    _die_with_parent()
    heap.keep_small(heap.ENGINE_BLOCK_BYTES)
    channel, side = Channel(socket.socket(fileno=int(arguments[0]))), socket.socket(fileno=int(arguments[1]))
    try:
        try:
            from p2pnode.compute.engine_loop import Engine  # loads llama.cpp, and may refuse it
        except P2PNodeError as exc:
            channel.send({"id": 0, "error": error_fields(exc)})
            return 1
        Engine(channel, side).run()
    except (NodeGoneError, EngineUnavailable):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
