"""Messages of NAT-PMP (RFC 6886) and of its successor PCP (RFC 6887), with which home routers forward ports. Pure.

Both are spoken to UDP port 5351 of the gateway; a router that knows NAT-PMP only refuses PCP with version 0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from p2pnode.errors import TransportError
from p2pnode.multiformats import DecodeError

PORT = 5351
NONCE_BYTES = 12
MESSAGE_BYTES_MAX = 1100
"""RFC 6887 section 7."""

_PCP, _NAT_PMP = 2, 0
_MAP, _ANSWER, _UDP = 1, 0x80, 17
_PCP_REQUEST = struct.Struct(">BBHI16s12sB3xHH16s")
_PCP_ANSWER = struct.Struct(">BBxBII12x12sB3xHH16s")
_MAP_REQUEST, _MAP_ANSWER = struct.Struct(">BBHHHI"), struct.Struct(">BBHIHHI")
_ADDRESS_ANSWER = struct.Struct(">BBHI4s")
_NAT_PMP_REASONS = {
    1: "it does not speak this version",
    2: "it does not allow mappings",
    3: "it has no address outside itself",
    4: "it has no room for another mapping",
    5: "it does not know this request",
}
_PCP_REASONS = {
    1: "it does not speak this version",
    2: "it does not allow mappings",
    3: "the request is malformed to it",
    4: "it does not know this request",
    6: "the request is malformed to it",
    7: "it has no address outside itself",
    8: "it has no room for another mapping",
    9: "it does not map this protocol",
    10: "this device has too many mappings",
    11: "the port outside is taken",
    12: "another router is in between",
    13: "there are too many peers in the request",
}
VERSION_UNKNOWN = 1


class RefusedError(TransportError):
    """The router's own no; `is_version` says that it wants the other protocol."""

    def __init__(self, protocol: str, code: int, reasons: dict[int, str]) -> None:
        super().__init__(f"the router refused by {protocol}: {reasons.get(code, f'code {code}')}")
        self.is_version = code == VERSION_UNKNOWN


@dataclass(frozen=True, slots=True)
class Granted:
    """What a router forwards."""

    external_port: int
    lifetime_s: int
    epoch_s: int
    host: str = ""
    """Outside; NAT-PMP tells it apart."""


def pcp_request(own_host: str, port: int, wanted_port: int, lifetime_s: int, nonce: bytes) -> bytes:
    """Map a UDP port; a lifetime of 0 ends the mapping."""
    outside = IPv6Address(0) if ":" in own_host else IPv6Address("::ffff:0:0")
    return _PCP_REQUEST.pack(
        _PCP, _MAP, 0, lifetime_s, _as_ipv6(own_host), nonce, _UDP, port, wanted_port, outside.packed
    )


def read_pcp(data: bytes, port: int, nonce: bytes) -> Granted:
    """Raises DecodeError for what is no answer to this request, RefusedError for a no."""
    if len(data) >= 4 and data[0] == _NAT_PMP and data[1] & _ANSWER:
        # RFC 6886 section 3.5: how a router without PCP says so.
        raise RefusedError("PCP", VERSION_UNKNOWN, _PCP_REASONS)
    if not _PCP_ANSWER.size <= len(data) <= MESSAGE_BYTES_MAX:
        raise DecodeError("not an answer of PCP")
    version, opcode, result, lifetime_s, epoch_s, back, protocol, inside, outside, host = (
        _PCP_ANSWER.unpack_from(data)
    )
    if version != _PCP and result == VERSION_UNKNOWN:
        raise RefusedError("PCP", result, _PCP_REASONS)
    if (version, opcode, back, protocol, inside) != (_PCP, _ANSWER | _MAP, nonce, _UDP, port):
        raise DecodeError("an answer to another request")
    if result:
        raise RefusedError("PCP", result, _PCP_REASONS)
    found = IPv6Address(host)
    return Granted(outside, lifetime_s, epoch_s, str(found.ipv4_mapped or found))


def address_request() -> bytes:
    return bytes((_NAT_PMP, 0))


def read_address(data: bytes) -> str:
    if len(data) != _ADDRESS_ANSWER.size or data[:2] != bytes((_NAT_PMP, _ANSWER)):
        raise _nat_pmp_error(data, 0)
    _, _, result, _, host = _ADDRESS_ANSWER.unpack(data)
    if result:
        raise RefusedError("NAT-PMP", result, _NAT_PMP_REASONS)
    return str(IPv4Address(host))


def map_request(port: int, wanted_port: int, lifetime_s: int) -> bytes:
    """Map a UDP port; a lifetime of 0 ends the mapping."""
    return _MAP_REQUEST.pack(_NAT_PMP, _MAP, 0, port, wanted_port, lifetime_s)


def read_map(data: bytes, port: int) -> Granted:
    if len(data) != _MAP_ANSWER.size or data[:2] != bytes((_NAT_PMP, _ANSWER | _MAP)):
        raise _nat_pmp_error(data, _MAP)
    _, _, result, epoch_s, inside, outside, lifetime_s = _MAP_ANSWER.unpack(data)
    if result:
        raise RefusedError("NAT-PMP", result, _NAT_PMP_REASONS)
    if inside != port:
        raise DecodeError("an answer to another request")
    return Granted(outside, lifetime_s, epoch_s)


def _nat_pmp_error(data: bytes, opcode: int) -> DecodeError | RefusedError:
    """Refusals may come in the length of any answer."""
    if (
        len(data) >= 4
        and data[:2] == bytes((_NAT_PMP, _ANSWER | opcode))
        and (code := data[2] << 8 | data[3])
    ):
        return RefusedError("NAT-PMP", code, _NAT_PMP_REASONS)
    return DecodeError("not an answer of NAT-PMP")


def _as_ipv6(host: str) -> bytes:
    address = ip_address(host)
    return address.packed if address.version == 6 else IPv6Address(f"::ffff:{address}").packed
