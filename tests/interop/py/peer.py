"""A py-libp2p peer that does what it is told: one JSON command a line in, one JSON result a line out."""

import json
import logging
import secrets
import sys

import multiaddr
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.ping import ID as PING
from libp2p.host.ping import PingService
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.identify import parse_identify_response
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr

logging.disable(logging.CRITICAL)
ECHO = "/interop/echo/1"
CHUNK = 4096


def say(**result):
    print(json.dumps(result), flush=True)


async def echo(stream):
    while data := await stream.read(CHUNK):
        await stream.write(data)
    await stream.close()


async def dial(host, address):
    info = info_from_p2p_addr(multiaddr.Multiaddr(address))
    await host.connect(info)
    return {"peer": str(info.peer_id)}


async def ping(host, peer):
    times = await PingService(host).ping(ID.from_base58(peer), 3)
    return {"us": list(times)}


async def identify(host, peer):
    stream = await host.new_stream(ID.from_base58(peer), [IDENTIFY])
    data = b""
    try:
        while part := await stream.read(CHUNK):
            data += part
    except Exception as error:
        if not data:
            raise error
    said = parse_identify_response(data)
    return {"agent": said.agent_version, "protocols": list(said.protocols)}


async def echo_bytes(host, peer, size):
    stream = await host.new_stream(ID.from_base58(peer), [ECHO])
    sent = got = wrong = 0
    while sent < size:
        part = bytes((sent + at) & 255 for at in range(min(CHUNK, size - sent)))
        await stream.write(part)
        sent += len(part)
        back = b""
        while len(back) < len(part):
            back += await stream.read(len(part) - len(back))
        wrong += back != part
        got += len(back)
    await stream.close()
    return {"got": got, "wrong": wrong}


COMMANDS = {"dial": dial, "ping": ping, "identify": identify, "echo": echo_bytes}


async def main():
    listen = [multiaddr.Multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")]
    key = create_new_key_pair(secrets.token_bytes(32))
    host = new_host(key_pair=key, enable_quic=True, listen_addrs=listen)
    async with host.run(listen_addrs=listen):
        host.set_stream_handler(PING, PingService(host).handle_ping)
        host.set_stream_handler(ECHO, echo)
        addresses = [str(address) for address in host.get_addrs()]
        say(ready=True, node="python", peer=str(host.get_id()), addresses=addresses)
        commands = trio.wrap_file(sys.stdin)
        async for line in commands:
            request = json.loads(line)
            try:
                with trio.fail_after(30):
                    result = await COMMANDS[request.pop("command")](host, **request)
                say(ok=True, **result)
            except Exception as error:
                say(ok=False, error=type(error).__name__, message=str(error)[:300])


trio.run(main)
