"""llama.cpp's RPC server in a process of its own, on loopback only: it has no authentication and no encryption.

Started by `rpc` as `python -m p2pnode.compute.rpc_server PORT THREADS`; never returns by itself.
"""

from __future__ import annotations

import ctypes
import signal
import sys

from p2pnode.errors import EngineIncompatible, P2PNodeError

_PR_SET_PDEATHSIG = 1


def serve(port: int, threads: int) -> None:
    """Offer this machine's processors at 127.0.0.1:PORT until killed."""
    from p2pnode.compute.llama_abi import lib  # loads llama.cpp, and may refuse it

    registry = lib.ggml_backend_reg_by_name(b"RPC")
    address = registry and lib.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_rpc_start_server")
    device = lib.ggml_backend_dev_by_name(b"CPU")
    if not address or not device:
        raise EngineIncompatible("this llama.cpp was built without RPC", hint="run: make setup")
    start = ctypes.CFUNCTYPE(
        None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p
    )(address)
    devices = (ctypes.c_void_p * 1)(device)
    start(f"127.0.0.1:{port}".encode(), None, threads, 1, ctypes.cast(devices, ctypes.c_void_p))


def main(arguments: list[str]) -> int:
    """`PORT THREADS`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        serve(int(arguments[0]), int(arguments[1]))
    except P2PNodeError as exc:
        sys.stderr.write(f"{exc.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
