"""Bulk rate, round trips and processor time of the transport, beside TCP, TLS and aioquic's own API.

    python -m bench.transport [--rounds N] [--only TEXT] [--parts 8192,bulk] [--let-sleep] [--out FILE]

Two processes on loopback; each variant runs once per round, rounds are interleaved and medians reported, so
that ratios within one run can be compared on a busy machine. Cores are kept from halting unless `--let-sleep` is
given: how long a halted core takes to wake is the machine's affair, and the same for every variant.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import engine_hop
from bench.conditions import awake_cores
from bench.transport_baselines import stock_client, stock_server, tcp_client, tcp_server
from bench.transport_exchange import PARTS, ROUND_TRIPS, Channel, Queue, Variant, answer, measure
from p2pnode.errors import RemoteProtocolError
from p2pnode.identity import Identity
from p2pnode.transport.quic import QuicTransport
from p2pnode.transport.quic_connection import QuicPeerConnection
from p2pnode.transport.quic_core import QuicCore
from p2pnode.transport.quic_fast import FastQuicCore

LISTEN = ("/ip4/127.0.0.1/udp/0/quic-v1",)

VARIANTS = [
    Variant("TCP (asyncio)", "tcp"),
    Variant("TLS over TCP (asyncio)", "tls"),
    Variant("aioquic API 1200", "stock", 1200),
    Variant("aioquic API 1452", "stock", 1452),
    Variant("aioquic API 8192", "stock", 8192),
    Variant("aioquic API 16384", "stock", 16_384),
    Variant("plain core 1200", "p2pnode", 1200, "plain"),
    Variant("plain core 1452", "p2pnode", 1452, "plain"),
    Variant("plain core 8192", "p2pnode", 8192, "plain"),
    Variant("plain core 16384", "p2pnode", 16_384, "plain"),
    Variant("fast core 1200", "p2pnode", 1200),
    Variant("fast core 1452", "p2pnode", 1452),
    Variant("fast core 8192", "p2pnode", 8192),
    Variant("fast core 16384 (default on loopback)", "p2pnode", 16_384),
    Variant("engine to engine 1452", "engines", 1452),
    Variant("engine to engine 16384", "engines", 16_384),
]


# --- p2pnode ---------------------------------------------------------------------------------------
PROTOCOL = "/bench/1"


def _node(variant: Variant) -> QuicTransport:
    core = FastQuicCore if variant.core == "fast" else QuicCore
    return QuicTransport(Identity.generate(), LISTEN, datagram_bytes_max=variant.datagram, core=core)


async def p2pnode_server(variant: Variant, queue: Queue) -> None:
    node = _node(variant)

    async def handle(stream: Any) -> None:
        try:
            await answer(stream.write, stream.read_exactly)
        except RemoteProtocolError:
            return

    node.handle(PROTOCOL, handle)
    await node.start()
    queue.put((list(node.listen_multiaddrs), node.peer_id))
    await asyncio.Event().wait()


async def _connected(
    variant: Variant, where: tuple[list[str], Any]
) -> tuple[QuicTransport, QuicPeerConnection]:
    node = _node(variant)
    await node.start()
    connection = await node.dial(*where)
    for _ in range(3):
        await connection.ping()
    assert connection.stats().datagram_bytes == variant.datagram, "probes did not settle"
    return node, connection


async def p2pnode_client(variant: Variant, where: tuple[list[str], Any]) -> dict[str, Any]:
    node, connection = await _connected(variant, where)

    async def open_channel() -> Channel:
        stream = await connection.open_stream(PROTOCOL)
        return stream.write, stream.read_exactly, stream.close_write

    result = await measure(open_channel, variant.parts)
    await node.close()
    return result


async def engines_server(variant: Variant, queue: Queue) -> None:
    node = _node(variant)
    await node.start()
    await engine_hop.serve(node)
    queue.put((list(node.listen_multiaddrs), node.peer_id))
    await asyncio.Event().wait()


async def engines_client(variant: Variant, where: tuple[list[str], Any]) -> dict[str, Any]:
    node, connection = await _connected(variant, where)
    result = await engine_hop.measure(connection)
    await node.close()
    return result


KINDS: dict[str, tuple[Any, Any]] = {
    "tcp": (tcp_server, tcp_client),
    "tls": (tcp_server, tcp_client),
    "stock": (stock_server, stock_client),
    "p2pnode": (p2pnode_server, p2pnode_client),
    "engines": (engines_server, engines_client),
}


def _serve(variant: Variant, queue: Queue) -> None:
    asyncio.run(KINDS[variant.kind][0](variant, queue))


def run(variant: Variant) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    server = context.Process(target=_serve, args=(variant, queue), daemon=True)
    server.start()
    try:
        return asyncio.run(asyncio.wait_for(KINDS[variant.kind][1](variant, queue.get(timeout=10)), 60))
    finally:
        server.terminate()
        server.join()


# --- report ----------------------------------------------------------------------------------------
def median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key, first in rounds[0].items():
        values = [one[key] for one in rounds]
        merged[key] = median(values) if isinstance(first, dict) else round(statistics.median(values), 4)
    return merged


def machine() -> dict[str, Any]:
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.system() + " " + platform.release().split("-")[0],
        "python": platform.python_version(),
        "aioquic": version("aioquic"),
        "cryptography": version("cryptography"),
        "commit": commit.stdout.strip(),
        "load_average": os.getloadavg()[0],
    }


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Against aioquic's own API in the same run, as specs/decisions and the issue state the targets."""
    base = results["aioquic API 1452"]

    def against(name: str) -> dict[str, float]:
        one = results[name]
        found = {}
        if "bulk_mb_s" in one:
            found["bulk"] = round(one["bulk_mb_s"] / base["bulk_mb_s"], 2)
        if "rtt_ms_8192" in one:
            found["rtt_8192"] = round(one["rtt_ms_8192"]["p50"] / base["rtt_ms_8192"]["p50"], 3)
        return found

    return {name: against(name) for name in results if "core" in name}


def line(one: dict[str, Any]) -> str:
    """What was measured of one variant."""
    found = []
    if "bulk_mb_s" in one:
        cpu = one["cpu_ms_per_mb"]
        found.append(f"{one['bulk_mb_s']:8.1f} MB/s, cpu ms/MB {cpu['send']:.1f}+{cpu['receive']:.1f}")
    trips = [(size, one.get(f"rtt_ms_{size}")) for size in ROUND_TRIPS]
    if any(times for _, times in trips):
        found.append("rtt ms " + "  ".join(f"{size}: {times['p50']:7.3f}" for size, times in trips if times))
    if "new_stream_rtt_ms_8192" in one:
        found.append(f"new stream {one['new_stream_rtt_ms_8192']['p50']:.3f}")
    return "   ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="variants whose name contains one of these (comma)")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure of each (comma)")
    parser.add_argument("--let-sleep", action="store_true", help="let idle cores halt")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    parts, wanted = tuple(options.parts.split(",")), options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    variants = [
        replace(variant, parts=parts) for variant in VARIANTS if any(text in variant.name for text in wanted)
    ]
    rounds: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
    started = time.perf_counter()
    with contextlib.nullcontext(False) if options.let_sleep else awake_cores() as is_awake:
        for _ in range(options.rounds):
            for variant in variants:
                rounds[variant.name].append(run(variant))
    results = {name: median(found) for name, found in rounds.items()}
    for name, one in results.items():
        if "engines_add_ms" in one:
            frames, engines = one["rtt_ms_8192_frames"]["p50"], one["rtt_ms_8192_engines"]["p50"]
            print(
                f"{name:40} rtt ms 8192 of frames {frames:.3f}, from engine to engine {engines:.3f}: "
                f"engines add {one['engines_add_ms']:.3f} ms"
            )
            continue
        print(f"{name:40}{line(one)}")
    report: dict[str, Any] = {
        "command": "python -m bench.transport " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "rounds": options.rounds,
        "cores_kept_awake": is_awake,
        "seconds": round(time.perf_counter() - started, 1),
        "results": results,
    }
    if "aioquic API 1452" in results:
        report["ratios_to_aioquic_api_1452"] = ratios(results)
        print(json.dumps(report["ratios_to_aioquic_api_1452"], indent=1))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
