"""The vectors of specs/vectors run against the code: what is ok gives the output, the rest its error."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import RemoteProtocolError
from p2pnode.identity import Identity
from p2pnode.multiformats import DecodeError
from p2pnode.peer_id import (
    decode_private_key,
    parse_peer_id,
    peer_id_from_bytes,
    peer_id_of,
    peer_id_to_bytes,
)
from p2pnode.transport import identify, multiaddr, tls
from p2pnode.transport.multistream import Responder
from p2pnode.units import PeerId

VECTORS = Path(__file__).parents[3] / "specs" / "vectors"


def cases(name: str) -> list[Any]:
    listed = json.loads((VECTORS / f"{name}.json").read_text())["cases"]
    assert len({case["name"] for case in listed}) == len(listed)
    return [pytest.param(case, id=case["name"]) for case in listed]


@pytest.mark.parametrize("case", cases("peer_id"))
def test_peer_id(case: dict[str, Any]) -> None:
    given, output = case["input"], case.get("output")
    if "public_key" in given:
        assert peer_id_of(bytes.fromhex(given["public_key"])) == output["peer_id"]
    elif case["expect"] == "ok":
        data = peer_id_to_bytes(given["text"])
        assert data.hex() == output["multihash"]
        assert peer_id_from_bytes(data) == parse_peer_id(given["text"]) == output["peer_id"]
    else:
        with pytest.raises(DecodeError):
            peer_id_to_bytes(given["text"])


@pytest.mark.parametrize("case", cases("identity"))
def test_identity(case: dict[str, Any]) -> None:
    given, output = case["input"], case.get("output")
    if "purpose" in given:
        derived = Identity.from_seed(bytes.fromhex(given["seed"])).derive(given["purpose"])
        assert derived.private_bytes_raw().hex() == output["secret"]
        assert derived.public_key().public_bytes_raw().hex() == output["ed25519_public_key"]
    elif case["expect"] == "ok":
        identity = Identity.from_key(decode_private_key(bytes.fromhex(given["private_key"])))
        assert (identity.public_key.hex(), identity.peer_id) == (output["public_key"], output["peer_id"])
    else:
        with pytest.raises(DecodeError):
            decode_private_key(bytes.fromhex(given["private_key"]))


@pytest.mark.parametrize("case", cases("multiaddr"))
def test_multiaddr(case: dict[str, Any]) -> None:
    given, output = case["input"], case.get("output")
    if case["expect"] == "ok":
        data = multiaddr.to_bytes(given["text"])
        assert data.hex() == output["bytes"]
        assert multiaddr.from_bytes(data) == output["text"]
    elif "text" in given:
        with pytest.raises(DecodeError):
            multiaddr.parse(given["text"])
    else:
        with pytest.raises(DecodeError):
            multiaddr.from_bytes(bytes.fromhex(given["bytes"]))


@pytest.mark.parametrize("case", cases("tls"))
def test_tls(case: dict[str, Any]) -> None:
    now = datetime.datetime.fromtimestamp(case["input"]["unix_time"], datetime.UTC)
    chain = [bytes.fromhex(der) for der in case["input"]["certificates"]]
    if case["expect"] == "ok":
        assert tls.verify_certificates(chain, now).peer_id == case["output"]["peer_id"]
    else:
        with pytest.raises(tls.CertificateError):
            tls.verify_certificates(chain, now)


@pytest.mark.parametrize("step", [1, 1_000_000])
@pytest.mark.parametrize("case", cases("multistream"))
def test_multistream(case: dict[str, Any], step: int) -> None:
    """Whole and one byte at a time."""
    received = bytes.fromhex(case["input"]["received"])
    responder = Responder(lambda protocol: protocol in case["input"]["supported"])
    sent = b""

    def feed() -> None:
        nonlocal sent
        for start in range(0, len(received), step):
            responder.feed(received[start : start + step])
            sent += responder.outgoing()

    if case["expect"] == "ok":
        feed()
        output = case["output"]
        assert (sent.hex(), responder.chosen) == (output["sent"], output["protocol"])
        assert responder.take_rest().hex() == output["rest"]
    else:
        with pytest.raises(RemoteProtocolError):
            feed()


@pytest.mark.parametrize("case", cases("identify"))
def test_identify(case: dict[str, Any]) -> None:
    given, output = case["input"], case.get("output")
    if "envelope" in given:
        if case["expect"] == "ok":
            record = identify.open_peer_record(bytes.fromhex(given["envelope"]))
            assert record.peer_id == output["peer_id"]
            assert (record.sequence, list(record.multiaddrs)) == (output["sequence"], output["multiaddrs"])
        else:
            with pytest.raises(RemoteProtocolError):
                identify.open_peer_record(bytes.fromhex(given["envelope"]))
        return
    message, peer_id = bytes.fromhex(given["message"]), PeerId(given["peer_id"])
    if case["expect"] == "ok":
        said = identify.decode(message, peer_id)
        assert list(said.listen_multiaddrs) == output["listen"]
        assert list(said.protocols) == output["protocols"]
        assert said.observed_multiaddr == output["observed"]
        assert (said.protocol_version, said.agent) == (output["protocol_version"], output["agent"])
    else:
        with pytest.raises(RemoteProtocolError):
            identify.decode(message, peer_id)
