"""aioquic's inside: each private name p2pnode touches exists and still means what we take it for."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from aioquic import tls
from aioquic._crypto import AEAD, HeaderProtection
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketNumberWindow, QuicPacketPacer, QuicPacketRecovery
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender

from p2pnode import transport
from p2pnode.transport import quic_congestion, quic_core, quic_fast_packet, quic_flights

CLASSES = {
    f"{cls.__module__}.{cls.__name__}": cls
    for cls in (
        QuicConnection,
        tls.Context,
        QuicPacketRecovery,
        QuicPacketNumberWindow,
        QuicPacketPacer,
        CryptoPair,
        AEAD,
        HeaderProtection,
        QuicStream,
        QuicStreamReceiver,
        QuicStreamSender,
        QuicPacketBuilder,
    )
}

SUBCLASSING = (
    "quic_core.py",
    "quic_congestion.py",
    "quic_fast.py",
    "quic_fast_send.py",
    "quic_flights.py",
)

LISTS = (quic_core.PRIVATE_NAMES, quic_flights.PRIVATE_NAMES, quic_fast_packet.PRIVATE_NAMES)

NAMES = [(owner, name) for listed in LISTS for owner, names in listed.items() for name in names]


def test_version_is_the_one_that_was_read() -> None:
    """A new release means reading its diff, running the interop, and changing this line."""
    assert version("aioquic") == "1.7.2"


@pytest.mark.parametrize(("owner", "name"), NAMES)
def test_private_name_exists(owner: str, name: str) -> None:
    cls = CLASSES[owner]
    assert hasattr(cls, name) or re.search(rf"self\.{name}\b[^=\n]*=", inspect.getsource(cls))


def test_every_private_name_touched_is_listed() -> None:
    """Whatever underscored name of aioquic occurs in the modules that subclass it is on the list."""
    inside = {
        name
        for cls in CLASSES.values()
        for name in re.findall(r"\bself\.(_[a-z]\w*)", inspect.getsource(cls))
    } | {name for cls in CLASSES.values() for name in vars(cls) if re.match("_[a-z]", name)}
    listed = {name for _, name in NAMES}
    folder = Path(transport.__file__).parent
    for path in (folder / name for name in SUBCLASSING):
        touched = set(re.findall(r"\.(_[a-z]\w*)|def (_[a-z]\w*)", path.read_text()))
        names = {name for pair in touched for name in pair if name}
        assert names & inside <= listed, path.name


def test_no_other_module_reaches_into_aioquic() -> None:
    listed = {name for _, name in NAMES}
    for path in sorted(Path(transport.__file__).parent.glob("*.py")):
        if path.name not in SUBCLASSING:
            touched = re.findall(r"\b(?:core|quic|tls|context)\.(_[a-z]\w*)", path.read_text())
            assert not set(touched) & listed, path.name


def test_limits_are_doubled_on_receipt_where_we_switch_it_off() -> None:
    """The overrides exist because of these lines; when they are gone, so may be the overrides."""
    assert "max_data.used * 2 > max_data.value" in inspect.getsource(QuicConnection._write_connection_limits)
    assert "highest_offset * 2" in inspect.getsource(QuicConnection._write_stream_limits)


def test_client_certificates_are_asked_for_by_one_flag() -> None:
    source = inspect.getsource(tls.Context)
    assert "self._request_client_certificate = False" in source
    assert "if self._request_client_certificate:" in source
    assert "self._set_peer_certificate(certificate)" in source


def test_stream_frames_have_14_bit_lengths() -> None:
    """Why datagrams never exceed 16,384 bytes."""
    assert "push_uint16(len(frame.data) | 0x4000)" in inspect.getsource(QuicConnection._write_stream_frame)


def test_congestion_control_is_registered_and_capped() -> None:
    control = quic_congestion.CappedReno(max_datagram_size=1200)
    assert not control.black_hole
    for _ in range(quic_congestion.BLACK_HOLE_LOSSES):
        control.large_lost += 1
    assert control.black_hole
    control.set_datagram_size(1200)
    assert not control.black_hole
