"""The wire: connections, addresses, members of a mesh, frames."""

HANDSHAKE_TIMEOUT_S = 10.0
"""A QUIC handshake is two round trips; on a phone link with loss that stays below this."""

CERTIFICATE_BYTES_MAX = 8192
"""Ours has about 480 bytes, one with an RSA host key about 2,000."""

DIAL_TIMEOUT_S = 15.0
"""One dial with all its addresses: a handshake, and the stagger between addresses."""

DIAL_STAGGER_S = 0.25
"""RFC 8305 section 5: 250 ms between connection attempts."""

DIAL_ADDRESSES_MAX = 16
"""More addresses of one peer than this are noise (old networks, containers)."""

NEGOTIATION_TIMEOUT_S = 10.0
"""A stream that has not said what it speaks by then is half-open or a slow loris."""

PING_TIMEOUT_S = 10.0
IDENTIFY_TIMEOUT_S = 10.0

IDLE_TIMEOUT_S = 30.0
"""How long a silent peer counts as there (go-libp2p's value); keep-alives run at a third of it."""

KEEP_ALIVE_S_MAX = 10.0
"""NAT mappings of UDP last 30 s on the worst home routers (RFC 4787 asks for 120 s)."""

CONNECTIONS_MAX = 512
CONNECTIONS_PER_ADDRESS_MAX = 128
"""A household behind one NAT; one attacker cannot take every slot."""

HANDSHAKES_MAX = 64
"""Half-open connections in all; each costs about 40 KB and 8 ms of processor time."""

HANDSHAKES_PER_ADDRESS_MAX = 16
HANDSHAKES_BEFORE_RETRY = 8
"""Above this many half-open connections a new address must prove itself (RFC 9000 section 8.1.2)."""

HANDSHAKES_PER_ADDRESS_BURST = 96
HANDSHAKES_PER_ADDRESS_PER_S = 16.0
"""Sustained: at 8 ms each one address costs at most an eighth of a core."""

ADDRESSES_TRACKED_MAX = 4096

STREAMS_PER_CONNECTION_MAX = 256
"""What go-libp2p and rust-libp2p allow a peer to open."""

DNS_TIMEOUT_S = 5.0
"""One question with its repetitions; a dial has 15 s for everything."""

DNSADDR_DEPTH_MAX = 4
DNSADDR_LOOKUPS_MAX = 16
DNSADDR_RECORDS_MAX = 100
"""Names that name names: whoever writes them must not keep a node asking."""

STREAM_LINGER_S = 10.0
"""After a handler ended, how long the peer may take to finish its side."""

CONNECTION_WINDOW_BYTES = 4 * 1024 * 1024
STREAM_WINDOW_BYTES = 2 * 1024 * 1024
"""What a peer may send beyond what was read: the most a reader that stops reading holds."""

WRITE_UNSENT_BYTES_MAX = 512 * 1024
"""A writer waits while more than this is not yet on the wire; enough for 40 ms at 100 Mbit/s."""

CONGESTION_WINDOW_BYTES_MAX = 4 * 1024 * 1024
"""100 Mbit/s at 300 ms; without a cap the window of a path without loss grows for ever."""

DATAGRAM_BYTES_MIN = 1200
"""RFC 9000 section 14: every path carries this."""

DATAGRAM_BYTES_MAX = 16_384
"""The QUIC core writes stream lengths in 14 bits; probed, never assumed."""

SOCKET_BUFFER_BYTES = 4 * 1024 * 1024

OBSERVERS_MAX = 64
OBSERVERS_AGREEING_MIN = 2
"""One peer's word about our address may be a mistake or a lie; two in different places seldom share one."""

OBSERVED_ADDRESSES_MAX = 2
PORT_MAPPING_LEASE_S = 3600
"""What many routers grant at most; renewed at half of it."""

PORT_MAPPING_LEASE_S_MIN = 120
"""What a router grants is believed down to this: shorter ones would only be asked for all the time."""

PORT_MAPPING_RETRY_S = 300.0
NAT_PMP_WAIT_S = 0.25
NAT_PMP_TRIES = 3
"""RFC 6886 section 3.1 begins at 250 ms and doubles; home routers answer in one, so 1.75 s are enough."""

PORT_MAPPING_DISCOVER_S = 2.0
PORT_MAPPING_TRIES = 8
LISTEN_ADDRESSES_MAX = 32
MDNS_ADDRESSES_MAX = 16
MDNS_PEERS_MAX = 256
MDNS_TTL_S = 120
MDNS_QUESTION_INTERVAL_S_MAX = 60.0
MULTIADDR_CHARACTERS_MAX = 400
NAME_CHARACTERS_MAX = 64
TICKET_ADDRESSES_MAX = 8
TICKET_CHARACTERS_MAX = 2048
GRANT_BYTES_MAX = 512
MESH_MEMBERS_MAX = 256
"""Membership is exchanged whole; beyond this a mesh should be several."""

MESSAGE_BYTES_MAX = 1024 * 1024
"""One control message: the largest carries every grant of a full mesh (256 x 512 B) with room."""

APPROVAL_WAIT_S = 300.0
"""How long a device without a ticket waits for its owner to walk over and compare two codes."""

APPROVALS_MAX = 16
APPROVALS_PER_ADDRESS_MAX = 4
"""Strangers on one network cannot fill the list for everybody."""

JOINS_SHOWN_MAX = 16
JOINS_PER_ADDRESS_MAX = 4
"""Devices whose way in is shown on the host's screen; one network address cannot push all others off it."""
JOINS_SHOWN_MS = 15 * 60 * 1000
"""As long as somebody walks between two devices and wonders."""
JOINS_STAGES_SHOWN_MAX = 8
"""Enough for what one new device is given; it is a list of its own making."""

PROBE_TIMEOUT_S = 3.0
"""Ten round trips of the slowest path of any use."""
PROBE_RESEND_S = 0.7
"""One lost datagram is no closed door; four tries within the time."""

NEARBY_WAIT_S = 4.0
"""An mDNS answer takes a second; a lost one is asked again after one more."""

NEARBY_DEVICES_MAX = 32

CONTROL_TIMEOUT_S = 10.0
"""A member that does not answer a small question in ten seconds is treated as unreachable."""

FRAME_PAYLOAD_BYTES_MAX = 64 * 1024 * 1024
"""512 rows of 32,768 float32 values, the widest hidden state we would carry in one micro-batch."""

FRAME_ROWS_MAX = 8192
FRAME_COLUMNS_MAX = 262_144
FRAME_META_BYTES_MAX = 16 * 1024
"""Timings, a code and a sentence; anything larger is not meta."""
