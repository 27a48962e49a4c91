"""A DNS server on loopback that knows a few TXT records, over UDP and TCP; for tests of names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

PORT_TRIES_MAX = 20


class DnsServer(asyncio.DatagramProtocol):
    """`asked` has every name in the order it was asked for; an unknown one does not exist."""

    def __init__(self, records: Mapping[str, Sequence[str]]) -> None:
        self.records = {name.lower(): list(texts) for name, texts in records.items()}
        self.asked: list[str] = []
        self.is_silent = False
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if self.is_silent:
            return
        answer = self._answer(data)
        wire = answer.to_wire(max_size=65_535)
        if len(wire) > 512:  # no EDNS here: the rest is asked for over TCP
            answer.answer.clear()
            answer.flags |= dns.flags.TC
            wire = answer.to_wire()
        self._transport.sendto(wire, address)

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        wire = self._answer(await reader.readexactly(size)).to_wire(max_size=65_535)
        writer.write(len(wire).to_bytes(2, "big") + wire)
        await writer.drain()
        writer.close()

    def _answer(self, data: bytes) -> dns.message.Message:
        question = dns.message.from_wire(data)
        name = question.question[0].name
        text = name.to_text(omit_final_dot=True).lower()
        self.asked.append(text)
        answer = dns.message.make_response(question)
        if text not in self.records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif question.question[0].rdtype == dns.rdatatype.TXT:
            for record in self.records[text]:
                # Character strings hold 255 bytes each.
                pieces = " ".join(f'"{record[at : at + 255]}"' for at in range(0, len(record), 255) or (0,))
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", pieces))
        return answer


async def _listen(made: DnsServer) -> tuple[asyncio.DatagramTransport, asyncio.Server, int]:
    """Datagrams and streams at one number: the system gives them out for each kind by itself."""
    loop = asyncio.get_running_loop()
    for _ in range(PORT_TRIES_MAX):
        transport, _protocol = await loop.create_datagram_endpoint(lambda: made, local_addr=("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        try:
            return transport, await asyncio.start_server(made.serve_stream, "127.0.0.1", port), port
        except OSError:
            transport.close()
    raise AssertionError("no port is free for both kinds")


@asynccontextmanager
async def dns_server(
    records: Mapping[str, Sequence[str]],
) -> AsyncIterator[tuple[DnsServer, dns.asyncresolver.Resolver]]:
    """The server, and a resolver that asks it alone."""
    made = DnsServer(records)
    transport, server, port = await _listen(made)
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], port
    try:
        yield made, resolver
    finally:
        server.close()
        await server.wait_closed()
        transport.close()
