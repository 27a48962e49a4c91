"""A UDP relay with latency, jitter, rate and loss: a home network's worst day on one machine.

    python tools/udp_relay.py --to 127.0.0.1:4001 --listen 127.0.0.1:5001 --latency-ms 20 --loss 0.01

Dial the relay's port instead of the node's; the node's own address stays undisturbed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys

from p2pnode.transport.udp_relay import Conditions, UdpRelay


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]") or "127.0.0.1", int(port)


async def relay(options: argparse.Namespace) -> None:
    conditions = Conditions(
        latency_s=options.latency_ms / 1e3,
        jitter_s=options.jitter_ms / 1e3,
        loss=options.loss,
        rate_bytes_s=options.rate_mbit * 125_000 if options.rate_mbit else None,
        datagram_bytes_max=options.mtu,
    )
    box = UdpRelay(options.to, conditions, options.seed)
    host, port = box.start(*options.listen)[:2]
    print(f"relay {host}:{port} -> {options.to[0]}:{options.to[1]}  {conditions}", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    print(box.counters, file=sys.stderr)
    box.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=address, required=True, help="where the node listens, host:port")
    parser.add_argument("--listen", type=address, default=("127.0.0.1", 0), help="where clients send to")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="one way")
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--loss", type=float, default=0.0, help="probability, 0..1")
    parser.add_argument("--rate-mbit", type=float, default=0.0, help="0 for no limit")
    parser.add_argument("--mtu", type=int, default=65_535, help="largest UDP payload that passes")
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(relay(parser.parse_args()))


if __name__ == "__main__":
    main()
