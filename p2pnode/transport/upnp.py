"""A port forwarded by UPnP, with the library miniupnpc (optional extra `nat`), which blocks."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from ipaddress import IPv4Address
from typing import Any

from p2pnode import limits
from p2pnode.errors import TransportError

DESCRIPTION = "p2pnode"


@dataclass(frozen=True, slots=True)
class UpnpMapping:
    address: str
    """Multiaddress under which the router forwards."""
    external_port: int
    router: Any
    """The library's handle, for ending the mapping."""


def map_port(port: int, *, description_url: str = "") -> UpnpMapping:
    """Ask the router, found by SSDP or given by its description's URL, to forward a UDP port.

    Raises: TransportError with what is missing
    """
    try:
        library = import_module("miniupnpc")
    except ImportError:
        raise TransportError(
            "UPnP needs the library miniupnpc", hint="install it with: pip install 'p2pnode[nat]'"
        ) from None
    router = library.UPnP()
    router.discoverdelay = int(limits.PORT_MAPPING_DISCOVER_S * 1000)
    try:
        if description_url:
            router.selectigd(description_url)
        elif router.discover() == 0:
            raise TransportError(
                "no router on this network answers UPnP",
                hint="switch UPnP on in the router, or forward the UDP port there by hand",
            )
        else:
            router.selectigd()
        outside = str(IPv4Address(router.externalipaddress()))
    except TransportError:
        raise
    except Exception as error:
        # miniupnpc raises bare Exception with the router's words.
        raise _refused(error) from None
    return _first_free(router, outside, port)


def _first_free(router: Any, outside: str, port: int) -> UpnpMapping:
    """The same number outside when it is free: then mappings and what peers observe agree."""
    said: object = "no port was tried"
    for wanted in range(port, min(port + limits.PORT_MAPPING_TRIES, 65_536)):
        try:
            done = router.addportmapping(
                wanted, "UDP", router.lanaddr, port, DESCRIPTION, "", limits.PORT_MAPPING_LEASE_S
            )
        except Exception as error:
            # As above; the next number may be free.
            said = error
            continue
        if done:
            return UpnpMapping(f"/ip4/{outside}/udp/{wanted}/quic-v1", wanted, router)
    raise _refused(said)


def _refused(said: object) -> TransportError:
    return TransportError(
        f"the router did not map the port: {said}", hint="forward the UDP port in the router by hand"
    )


def end_mapping(mapping: UpnpMapping) -> bool:
    """Take the mapping back; False when the router would not, then its lease ends it."""
    try:
        return bool(mapping.router.deleteportmapping(mapping.external_port, "UDP"))
    except Exception:
        # miniupnpc raises bare Exception; the lease ends the mapping anyway.
        return False
