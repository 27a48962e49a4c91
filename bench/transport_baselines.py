"""What the transport is compared with: TCP, TLS over TCP, and aioquic's own asyncio API."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import tempfile
from pathlib import Path
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.quic.configuration import QuicConfiguration
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.transport_exchange import Channel, Queue, Variant, answer, measure
from p2pnode.identity import Identity
from p2pnode.transport.tls import make_certificate


# --- TCP and TLS -----------------------------------------------------------------------------------
def _pem() -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    made = make_certificate(Identity.generate(), key, datetime.datetime.now(datetime.UTC), 1)
    folder = Path(tempfile.mkdtemp())
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return str(folder / "cert.pem"), str(folder / "key.pem")


async def tcp_server(variant: Variant, queue: Queue) -> None:
    context = None
    if variant.kind == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*_pem())

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(*_channel(reader, writer)[:2])
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=1 << 20, ssl=context)
    queue.put(server.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


def _channel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Channel:
    async def write(data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    async def close() -> None:
        writer.write_eof() if writer.can_write_eof() else writer.close()

    return write, reader.readexactly, close


async def tcp_client(variant: Variant, port: int) -> dict[str, Any]:
    context = None
    if variant.kind == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    async def open_channel() -> Channel:
        return _channel(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 20, ssl=context))

    return await measure(open_channel, variant.parts)


# --- aioquic's own asyncio API (server authentication only) ----------------------------------------
def _stock_configuration(variant: Variant, *, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=["bench"],
        verify_mode=ssl.CERT_NONE,
        max_datagram_size=variant.datagram,
        max_data=16 << 20,
        max_stream_data=16 << 20,
    )


def _stock_channel(
    protocol: QuicConnectionProtocol, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Channel:
    stream_id = writer.get_extra_info("stream_id")

    async def write(data: bytes) -> None:
        writer.write(data)
        # Its writer buffers without end: wait as a careful user would.
        while True:
            stream = protocol._quic._streams.get(stream_id)
            if stream is None or stream.sender._buffer_stop - stream.sender._buffer_start < 4 << 20:
                return
            await asyncio.sleep(0.0005)

    async def close() -> None:
        writer.write_eof()

    return write, reader.readexactly, close


async def stock_server(variant: Variant, queue: Queue) -> None:
    configuration = _stock_configuration(variant, is_client=False)
    configuration.load_cert_chain(*_pem())
    tasks: set[asyncio.Task[None]] = set()

    class Server(QuicConnectionProtocol):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._stream_handler = self._begin

        def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._handle(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await answer(*_stock_channel(self, reader, writer)[:2])
            except asyncio.IncompleteReadError:
                writer.write_eof()

    server = await serve("127.0.0.1", 0, configuration=configuration, create_protocol=Server)
    queue.put(server._transport.get_extra_info("sockname")[1])
    await asyncio.Event().wait()


async def stock_client(variant: Variant, port: int) -> dict[str, Any]:
    configuration = _stock_configuration(variant, is_client=True)
    async with connect("127.0.0.1", port, configuration=configuration) as protocol:

        async def open_channel() -> Channel:
            return _stock_channel(protocol, *await protocol.create_stream())

        return await measure(open_channel, variant.parts)
