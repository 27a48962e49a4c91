"""The only place where real sockets, files, clocks and engines are made and put together."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypercorn.utils import UnexpectedMessageError

from p2pnode import __version__, heap
from p2pnode.api.app import create_app
from p2pnode.api.keys import FileKeys
from p2pnode.api.oidc import oidc_verifier
from p2pnode.api.security import ApiSecurity
from p2pnode.api.server import ApiServer
from p2pnode.commands import StopNode
from p2pnode.config import JoinOptions
from p2pnode.errors import (
    AdmissionError,
    ConfigError,
    FolderInUse,
    P2PNodeError,
    PeerUnreachable,
)
from p2pnode.events.folder import database_path
from p2pnode.identity import load_or_create
from p2pnode.logs import structlog
from p2pnode.machine import bind_to_machine, now_ms
from p2pnode.models.files import write_atomic
from p2pnode.models.store import ModelStore
from p2pnode.multiformats import DecodeError
from p2pnode.node.core import Node
from p2pnode.node.data_folder import DataFolder
from p2pnode.node.faces import Faces
from p2pnode.node.ledger import Ledger
from p2pnode.node.mesh import Mesh
from p2pnode.node.model_check import check_model
from p2pnode.node.rebuilding import Door, RebuildingFaces, exact_or_failed
from p2pnode.tracing import OFF, Tracing
from p2pnode.transport.invite import decode_ticket
from p2pnode.transport.multiaddr import peer_address, quic_address
from p2pnode.transport.quic import QuicTransport
from p2pnode.units import PeerId, UnixMs

NODE_FILE = "node.json"
SWITCH_INTERVAL_S = 0.0005
"""A busy Python thread must not keep the loop that owns the QUIC sockets waiting (measured: 30 ms with the default)."""

Tell = Callable[[str], None]


async def _check_given(options: JoinOptions) -> None:
    """What a person gave is looked at before anything is written."""
    if options.ticket is not None:
        # A service starts with the ticket it joined with, long expired: then the mesh says whether it is needed.
        is_new = not await asyncio.to_thread(database_path(options.data).exists)
        decode_ticket(options.ticket, now_ms=UnixMs(now_ms()) if is_new else None)
    for address in options.peers:
        check_peer(address)
    for path in options.models:
        await check_model(path)
    for address in options.announce:
        _check_announced(address)


def _check_announced(address: str) -> None:
    try:
        quic_address(address)
    except DecodeError as error:
        hint = "e.g. /ip4/203.0.113.7/udp/9481/quic-v1"
        raise ConfigError(f"cannot announce {address}: {error}", hint=hint) from None


class RunningNode:
    """A node with its API, as `join` and the demo run it."""

    def __init__(
        self,
        node: Node,
        faces: Faces,
        server: ApiServer,
        closing: asyncio.Event,
        data: Path,
    ) -> None:
        self.node = node
        self._faces = faces
        self.server = server
        self._closing = closing
        self._data = data

    @classmethod
    async def start(cls, options: JoinOptions, tell: Tell) -> RunningNode:
        """Everything a device needs, or a condition and nothing left behind."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        data = options.data
        await _check_given(options)
        closing = asyncio.Event()
        server = ApiServer(options.api, closing)
        folder = DataFolder(data)
        undo: list[Callable[[], Any]] = [folder.give_back]
        mesh: Mesh | None = None
        try:
            listener = await server.bind()
            undo.append(listener.close)
            folder.prepare()
            identity = load_or_create(data)
            bind_to_machine(data, identity, moved=options.moved)
            ledger = await Ledger.open(data, identity, now_ms=now_ms)
            undo.append(ledger.close)
            tracing: Tracing = OFF
            if options.traces:
                from p2pnode.node.otel import open_tracing

                tracing = open_tracing(peer=identity.peer_id, name=options.name)
                undo.append(lambda: asyncio.to_thread(tracing.close))
            token = secrets.token_urlsafe(24)
            security = ApiSecurity(
                host=server.host,
                admin_token=token,
                allowed_hosts=frozenset(options.allowed_hosts),
                keys=FileKeys(data / "api_keys.json"),
                console=options.console,
                verify_jwt=oidc_verifier(options.oidc_issuer, options.oidc_audience),
            )
            door: Door | None = None
            if not ledger.is_exact.is_set():
                # Nothing is decided by what an older version folded: until then there are only the read-only faces.
                door = Door(RebuildingFaces(ledger, options, identity.peer_id))
                await server.start(
                    create_app(door.facade, security, closing=closing, tracing=tracing), listener
                )
                undo.append(server.stop)
                write_node_file(data, server, token, identity.peer_id)
                undo.append(lambda: (data / NODE_FILE).unlink(missing_ok=True))
                tell(
                    f"this version folds the record of {ledger.log.size} events anew; until then it is read-only"
                )
                await exact_or_failed(ledger)
            transport = QuicTransport(identity, options.listen, agent=f"p2pnode/{__version__}")
            store = await asyncio.to_thread(ModelStore, data / "models")
            node = Node(
                options=options,
                identity=identity,
                ledger=ledger,
                transport=transport,
                store=store,
                tracing=tracing,
            )
            mesh = node.mesh
            transport.identify.observe(node.reach.identified)
            await transport.start()
            undo.append(transport.close)
            undo.append(lambda: node.ledger.do(StopNode(reason="the start failed")))
            undo.append(node.life.end_work)
            await node.start(tell)
            faces = Faces(node)
            if door is not None:
                door.open(faces)
            else:
                await server.start(create_app(faces, security, closing=closing, tracing=tracing), listener)
                undo.append(server.stop)
            running = cls(node, faces, server, closing, data)
            write_node_file(data, server, token, node.me)
        except BaseException as error:
            is_used = isinstance(error, FolderInUse)
            if is_used or (mesh is not None and may_be_member(mesh, options, error)):
                undo.remove(folder.give_back)
            await undo_all(undo)
            raise
        return running

    async def stop(self, reason: str) -> None:
        (self._data / NODE_FILE).unlink(missing_ok=True)
        self.node.stopping.set()
        await self.server.stop()
        await self._faces.modes.close()
        await self.node.stop(reason)
        await asyncio.to_thread(self.node.tracing.close)


def write_node_file(data: Path, server: ApiServer, token: str, me: PeerId) -> None:
    """How programs on this machine find the node; readable by its owner alone."""
    document = {
        "api": server.url,
        "pid": os.getpid(),
        "token": token,
        "peer_id": me,
        "version": __version__,
    }
    path = data / NODE_FILE
    write_atomic(path, json.dumps(document).encode())
    path.chmod(0o600)


def check_peer(text: str) -> None:
    """ConfigError for an address of --peer that nobody could dial."""
    try:
        peer_address(text)
    except DecodeError as error:
        raise ConfigError(
            f"--peer {text}: {error}",
            hint="write for example /ip4/192.168.1.20/udp/9481/quic-v1/p2p/ID or /dnsaddr/home.example/p2p/ID",
        ) from None


async def undo_all(steps: list[Callable[[], Any]]) -> None:
    """Take back what a failed start did, last first; a step that fails too does not keep the others from it."""
    for step in reversed(steps):
        try:
            result = step()
            if asyncio.iscoroutine(result):
                await result
        except Exception:
            logging.getLogger("p2pnode").debug("while taking back a failed start", exc_info=True)


def may_be_member(mesh: Mesh, options: JoinOptions, error: BaseException) -> bool:
    """Whether somebody may have admitted this device's key, so that the key must outlive the failed start.

    Nobody has seen the mesh that a first device made. Who asked others was admitted, or was told no, or never
    reached them; anything else (a lost answer, Ctrl-C) leaves it open.
    """
    if options.ticket is None and not options.ask:
        return False
    return mesh.membership is not None or not isinstance(error, AdmissionError | PeerUnreachable)


def configure_logging() -> None:
    """Plain lines on a terminal, JSON for services; nothing on stdout, which belongs to answers."""
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    level = logging.DEBUG if os.environ.get("P2PNODE_DEBUG") else logging.INFO
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)


def ticket_text(options: JoinOptions) -> str | None:
    """The ticket from the command line, a file, or standard input."""
    if options.invite_file is None:
        return options.ticket
    if options.ticket is not None:
        raise ConfigError("give the ticket or --invite-file, not both")
    if str(options.invite_file) == "-":
        return sys.stdin.readline().strip()
    try:
        return options.invite_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the ticket cannot be read from {options.invite_file}: {error}") from None


def run_node(options: JoinOptions) -> int:
    """`p2pnode join`: run until SIGTERM or SIGINT; 0 after a clean stop."""
    configure_logging()
    heap.keep_small(heap.NODE_BLOCK_BYTES)
    from dataclasses import replace

    return asyncio.run(_run(replace(options, ticket=ticket_text(options), invite_file=None)))


def _unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Connections end in the middle when a node does. Python 3.11's streams report one that was cancelled, and the
    HTTP server an answer that came too late for its connection, as if something had failed."""
    error = context.get("exception")
    is_late = isinstance(error, UnexpectedMessageError) and str(error).endswith("CLOSED")
    if not is_late and not isinstance(error, asyncio.CancelledError):
        loop.default_exception_handler(context)


async def _run(options: JoinOptions) -> int:
    stop = asyncio.Event()
    reasons: list[str] = []
    loop = asyncio.get_running_loop()

    def asked(name: str) -> None:
        reasons.append(name)
        stop.set()

    loop.set_exception_handler(_unhandled)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked, signal.Signals(number).name)

    def tell(text: str) -> None:
        if not options.as_json:
            print(f"  {text}" if text.startswith("✗ ") else f"  ✓ {text}", flush=True)

    starting = asyncio.ensure_future(RunningNode.start(options, tell))
    waiting = asyncio.ensure_future(stop.wait())
    await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return 0
    running = starting.result()
    running.node.ledger.log.on_failure(lambda failure: asked(failure.message))
    await announce(running, as_json=options.as_json)
    heap.let_files_go()
    await stop.wait()
    waiting.cancel()
    await running.stop(reasons[0] if reasons else "asked")
    failed = running.node.ledger.log.failure  # also while the last block was sealed
    if failed is not None:
        print(f"error: {failed.message}\nhint:  {failed.hint}", file=sys.stderr, flush=True)
    return 0 if failed is None else 1


async def announce(running: RunningNode, *, as_json: bool) -> None:
    """What a person needs next: who this is, where the panel is, how others join."""
    node = running.node
    addresses = [f"{address}/p2p/{node.me}" for address in node.addresses()]
    document: dict[str, Any] = {
        "peer_id": node.me,
        "name": node.name,
        "mesh": node.mesh.mesh_name,
        "role": node.mesh.my_role,
        "api": running.server.url,
        "addresses": addresses,
        "data": str(node.options.data),
    }
    if node.mesh.my_role == "founder" and not node.ledger.state.invites.invites:
        made = await node.mesh.invite(uses=1, expires_s=3600, role="worker", label="first start")
        document["ticket"] = made["ticket"]
    if as_json:
        print(json.dumps(document), flush=True)
        return
    print(f"  {node.name} is ready in the mesh {node.mesh.mesh_name!r} as {node.mesh.my_role}")
    print(f"  peer id  {node.me}")
    print(f"  panel    {running.server.url}")
    for address in addresses:
        print(f"  address  {address}")
    if "ticket" in document:
        print(f"\n  On the next device (within an hour, once):\n\n    p2pnode join {document['ticket']}\n")
    sys.stdout.flush()


__all__ = ["P2PNodeError", "RunningNode", "run_node"]
