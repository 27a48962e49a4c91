"""Writes specs/vectors/messages.json: `python -m tests.kit.message_vectors`. The tests read the file, not this."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack

from p2pnode import limits
from p2pnode.transport import messages

TARGET = Path("specs/vectors/messages.json")
KEY = bytes(range(32))

SENT: list[tuple[str, str, messages.AnyMessage]] = [
    ("admit", "/p2pnode/admit/1, with a ticket", messages.AdmitRequest(
        secret=bytes(16), name="kitchen", version="0.1.0", addresses=["/ip4/192.0.2.1/udp/9481/quic-v1"])),
    ("admit a guest", "whole answers and nothing else", messages.AdmitRequest(
        secret=bytes(16), name="kitchen", version="0.1.0", guest=True)),
    ("admitted", "grants are signed bytes of 02", messages.Admitted(
        grant=b"\x01\x02", mesh_name="home", grants=[b"\x03"], revocations=[],
        peers=[{"key": KEY, "name": "attic", "addresses": []}])),
    ("look", "no fields", messages.Look()),
    ("here", "", messages.Here(mesh_key=KEY, mesh_name="home", name="attic")),
    ("ask", "without a ticket", messages.Ask(name="phone", version="0.1.0", commitment=KEY)),
    ("pending", "a float stays a float", messages.Pending(
        mesh_key=KEY, mesh_name="home", name="attic", nonce=KEY[:16], wait_s=300.0)),
    ("reveal", "", messages.Reveal(nonce=KEY[:16])),
    ("refused", "a code of 12", messages.Refused(code="invite_expired", message="expired 2 min ago")),
    ("status", "/p2pnode/status/1", messages.Status(
        name="attic", version="0.1.0", role="worker", mesh_key=KEY, addresses=[], grants=[], revocations=[],
        models=[], capability={"cores": 2}, state="active", now_ms=1_790_000_000_000)),
    ("attach", "the first message of /p2pnode/stage/1; frames of 06 follow the answer", messages.Call(
        method="attach", arguments={"plan_id": "plan", "stage": 1})),
    ("reduce", "the first message of /p2pnode/reduce/1", messages.Call(
        method="reduce", arguments={"token": KEY[:16]})),
    ("tile", "a question of /p2pnode/log/1", messages.Call(method="tile", arguments={"level": 0, "index": 3})),
    ("models", "a question of /p2pnode/infer/1", messages.Call(method="models", arguments={})),
    ("a model told", "one for each name, before the answer", messages.Progress(data={"model": {
        "name": "tiny", "manifest": "bafk", "complete": True, "default": True, "architecture": "llama",
        "quantisation": "Q8_0", "size_bytes": 8000, "layers": 8, "context_length": 512, "chat_template": None,
        "bos_token": "<s>", "eos_token": "</s>", "add_bos": True}})),
    ("about a mesh", "after its models, for a guest", messages.Answer(data={
        "name": "attic", "mesh_name": "home", "grants": [b"\x03"], "revocations": [],
        "peers": [{"peer": "12D3KooW", "addresses": ["/ip4/192.0.2.1/udp/9481/quic-v1"]}]})),
    ("status with directions", "of the teller itself all, of others those that fail", messages.Status(
        name="attic", version="0.1.0", role="worker", mesh_key=KEY, addresses=[], grants=[], revocations=[],
        models=[], capability={}, state="active", now_ms=1_790_000_000_000, extra={"directions": {
            "12D3KooWattic": {
                "12D3KooWkitchen": {"state": "ok", "good_ms_ago": 1200, "opened": True},
                "12D3KooWstudio": {"state": "unreachable", "good_ms_ago": 90_000, "tried": [
                    ["/ip4/192.0.2.1/udp/9481/quic-v1", "no answer within 3 s"]]},
                "12D3KooWphone": {"state": "untried"}},
            "12D3KooWkitchen": {
                "12D3KooWstudio": {"state": "unreachable", "told_ms_ago": 4000, "tried": [
                    ["/ip4/192.0.2.1/udp/9481/quic-v1", "nothing listens there"]]}}}})),
    ("empty progress", "breaks the silence", messages.Progress(data={})),
    ("answer", "", messages.Answer(data={"hashes": [KEY]})),
]  # fmt: skip

READ: list[tuple[str, str, dict[str, Any]]] = [
    ("unknown field", "said by a newer version", {"t": "answer", "data": {}, "later": 1}),
    ("defaults", "hint and addresses may be missing", {"t": "refused", "code": "busy", "message": "later"}),
    ("fields in another order", "maps have none", {"arguments": {}, "method": "plan.info", "t": "call"}),
]

_STATUS = msgpack.unpackb(messages.encode_message(SENT[9][2])[4:])
_ASK = {"t": "ask", "name": "", "version": "", "commitment": b""}
REFUSED: list[tuple[str, str, bytes]] = [
    ("unknown type", "", msgpack.packb({"t": "nonsense"})),
    ("no type", "", msgpack.packb({"data": {}})),
    ("type that is no text", "", msgpack.packb({"t": 1})),
    ("missing field", "", msgpack.packb({"t": "call", "method": "plan.info"})),
    ("field of another type", "", msgpack.packb({"t": "call", "method": 5, "arguments": {}})),
    ("text for bytes", "", msgpack.packb({"t": "reveal", "nonce": "0001"})),
    ("bytes for text", "", msgpack.packb({"t": "refused", "code": b"busy", "message": ""})),
    ("float for a whole number", "", msgpack.packb({**_STATUS, "now_ms": 0.5})),
    ("null for a list", "", msgpack.packb({**_ASK, "addresses": None})),
    ("a list", "", msgpack.packb([1, 2])),
    ("a text", "", msgpack.packb("call")),
    ("empty", "", b""),
    ("not MessagePack", "0xc1 is never used", b"\xc1"),
    ("truncated", "", messages.encode_message(SENT[0][2])[4:-1]),
    ("two messages in one", "bytes after the map", msgpack.packb({"t": "look"}) * 2),
    ("text that is not UTF-8", "", b"\x83\xa1t\xa7refused\xa4code\xa1\xff\xa7message\xa0"),
]  # fmt: skip


def shown(value: Any) -> Any:
    """As JSON: bytes are {"hex": …}."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: shown(one) for key, one in value.items()}
    return [shown(one) for one in value] if isinstance(value, list) else value


def _case(name: str, comment: str, expect: str, frame: bytes, output: Any = None) -> dict[str, Any]:
    return {
        "name": name,
        "comment": comment,
        "expect": expect,
        "input": {"frame": frame.hex()},
        "output": output,
    }


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def main() -> None:
    cases = []
    for name, comment, message in SENT:
        frame = messages.encode_message(message)
        cases.append(_case(name, comment, "ok", frame, shown(msgpack.unpackb(frame[4:]))))
    for name, comment, fields in READ:
        frame = _framed(msgpack.packb(fields))
        read = messages.encode_message(messages.decode_message(frame[4:]))
        cases.append(_case(name, comment, "ok", frame, shown(msgpack.unpackb(read[4:]))))
    cases += [_case(name, comment, "protocol_remote", _framed(body)) for name, comment, body in REFUSED]
    too_long = (limits.MESSAGE_BYTES_MAX + 1).to_bytes(4, "big")
    cases.append(_case("too long", "refused before a byte of it is read", "protocol_remote", too_long))
    TARGET.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
