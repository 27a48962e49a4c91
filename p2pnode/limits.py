"""Every bound of the project: the unit is in the name, the reason beside the number.

A peer's numbers are compared with these before anything is allocated.
"""

from __future__ import annotations

# --- time ------------------------------------------------------------------------------------------
CLOCK_SKEW_MS_MAX = 5 * 60 * 1000
"""Clocks of home devices drift; five minutes is what kerberos tolerates too."""

# --- transport -------------------------------------------------------------------------------------
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

NEARBY_WAIT_S = 4.0
"""An mDNS answer takes a second; a lost one is asked again after one more."""

NEARBY_DEVICES_MAX = 32

CONTROL_TIMEOUT_S = 10.0
"""A member that does not answer a small question in ten seconds is treated as unreachable."""

# --- frames ----------------------------------------------------------------------------------------
FRAME_PAYLOAD_BYTES_MAX = 64 * 1024 * 1024
"""512 rows of 32,768 float32 values, the widest hidden state we would carry in one micro-batch."""

FRAME_ROWS_MAX = 8192
FRAME_COLUMNS_MAX = 262_144
FRAME_META_BYTES_MAX = 16 * 1024
"""Timings, a code and a sentence; anything larger is not meta."""

# --- events and log --------------------------------------------------------------------------------
EVENT_BYTES_MAX = 65_535
"""An entry of a tlog-tiles bundle has a 16-bit length."""

LOG_BLOCK_EVENTS = 100
LOG_BLOCK_MS = 30_000
"""A block is sealed at so many events, or so long after its first one."""

LOG_HOLD_MS = 60_000
LOG_HELD_EVENTS_MAX = 200
"""After a start nothing is sealed for so long, or so many events (a block is smaller than a tile of 256), until a
member that cosigned before was asked: a restored backup must learn that it may not sign before it does."""

LOG_BATCH_EVENTS_MAX = 512
"""Callers that share one commit; more only makes the first of them wait longer."""

LOG_QUEUE_MAX = 4096
"""Submissions waiting for the writer before callers are told to come again (Tessera pushes back there too)."""

LOG_READ_EVENTS_MAX = 10_000
"""Events in one answer to a reader."""

LOG_SHARE_ENTRIES_MAX = 256
LOG_SHARE_BYTES_MAX = 512 * 1024
"""Entries of one answer to a member: half of what a control message may have, and one entry has at most 64 KiB."""

LOG_SHARE_READERS_MAX = 8
"""Questions of members read at once; more are told to come again."""

LOG_PUBLISH_MS_MIN = 1_000
"""Between two writes of the published checkpoint, when blocks fill faster than that."""

LOG_SNAPSHOT_EVENTS = 100_000
"""Between two snapshots of what is folded; replaying so many takes about a second."""

LOG_REBUILD_SLICE_EVENTS = 500
"""Folded at once while newer code folds the record beside the old state: what others ask of the writer waits some
milliseconds at most."""

LOG_REBUILD_EVENTS_MIN = 20_000
"""Fewer events are folded before a node starts, which takes a fifth of a second; more beside the old state."""

LOG_DISK_RESERVE_BYTES = 256 * 1024 * 1024
"""Below this much free disk no paid work is taken on."""

LOG_DISK_FLOOR_BYTES = 16 * 1024 * 1024
"""Below this much free disk nothing is appended: the last pages are for sealing and for closing well."""

SECRET_TEXT_BYTES_MAX = 1024 * 1024
"""A prompt or command that the operator chose to keep beside its salt."""

WITNESS_BLOCKS_KEPT = 1000
"""Newest blocks whose cosignatures are kept; a newer checkpoint vouches for all before it."""

WITNESS_EVENT_MS_MIN = 60 * 60 * 1000
"""Between two events about one witness: if every cosignature were an event, two idle nodes would cosign for ever."""

WITNESS_ORIGINS_MAX = 1024
"""Logs whose newest checkpoint this node remembers; a peer has one, and one more for each restored backup."""

WITNESS_PROOF_HASHES_MAX = 63
"""What c2sp.org/tlog-witness allows in one add-checkpoint request."""

POLICY_BYTES_MAX = 64 * 1024
POLICY_LINES_MAX = 1024
"""c2sp.org/tlog-policy wants room for 32 logs, witnesses and groups; a line has less than a kilobyte."""

WITNESS_TILES_MAX = 64
"""Tiles asked for to compare two checkpoints: two ways down a tree of 2**63 events pass through sixteen."""

WITNESSED_TOLD_MAX = 16
"""Checkpoints of other logs in each status: with its keys one has less than a kilobyte."""

WITNESS_AGREED_MAX = 256
"""Compared checkpoints of one log that are remembered; a forgotten one is compared again."""

WITNESS_HEARD_MAX = 16
"""Different checkpoints of one log that wait to be compared; more come again with the next status."""

# --- billing ---------------------------------------------------------------------------------------
OUTPUT_TOKENS_PER_UNIT = 1000
"""One unit pays one request of up to this many output tokens."""
WELCOME_MICROUNITS = 5_000_000
"""Five requests to try a node, before its owner is asked for more."""
WELCOMES_PER_NETWORK_PER_DAY_MAX = 3
"""A fresh key costs nothing, a fresh /24 (IPv4) or /48 (IPv6) costs something."""
WELCOMES_PER_HOUR_MAX = 20
"""What one node can be tricked out of at most: 100 units an hour."""
HOLD_MS_MAX = 60 * 60 * 1000
"""A request that runs longer than an hour is taken for lost and its credit given back."""
HOLDS_OPEN_MAX = 10_000
HOLDS_OPEN_PER_ACCOUNT_MAX = 256
"""One caller can not fill the table of holds for everybody."""
HOLDS_RESOLVED_KEPT_MAX = 10_000
"""How long a repeated settlement is still answered with the first result."""
HOLDS_EXPIRED_PER_DECISION_MAX = 64
"""Keeps one decision short: the writer decides everything one after the other."""
TOPUP_MICROUNITS_MAX = 10**15
"""A billion units: far under 2**63, so that sums of thousands of top-ups cannot overflow an event field."""
TOPUPS_KEPT_MAX = 4096
ACCOUNT_MICROUNITS_MAX = 2**61
"""Of all top-ups together, and of a quota."""
BALANCE_MICROUNITS_MAX = 2**62
"""No balance of a record that is true can come near; it keeps sums within 64 bits."""
QUOTA_PERIOD_MS_MAX = 366 * 24 * 60 * 60 * 1000
EXPOSURE_MICROUNITS_MAX = 1_000_000
"""A provider works for at most one unit that its consumer has not yet signed for."""
RECEIPT_BYTES_MAX = 2048
"""A receipt has about 700 bytes; two of them and their signatures fit into one fraud proof."""
RECEIPT_FILE_BYTES_MAX = 8 * 1024 * 1024
"""A thousand receipts with both logs' proofs."""
RECEIPT_LAYERS_MAX = 4096
RECEIPT_CALL_S_MAX = 5.0
"""A receipt is asked for after the answer; a device that is gone by then is asked with the next one."""
GRANTS_PER_PLAN_MAX = 256
"""Sessions of one plan a device lets in: as many as one llama.cpp context has sequences."""
GRANTS_WAITING_MAX = 64
GRANT_WAIT_S_MAX = 3.0
"""Receipts follow an answer within a second; a head that is slower hears `receipt_owed` and may ask again."""
DEBT_KEPT_S_MAX = 3600.0
"""As long as a hold lives: what a head that vanished did not sign for by then is written off."""
RECEIPTS_UNFINISHED_MAX = 64
"""Receipts to be asked for again, of each provider that went away meanwhile."""
ROW_TALLIES_KEPT_MAX = 1024
"""Sessions whose receipts a head may still ask for."""
STATEMENT_ROWS_MAX = 100_000

# --- projections -----------------------------------------------------------------------------------
REQUESTS_KEPT_MAX = 1000
PLANS_KEPT_MAX = 256
INVITES_KEPT_MAX = 1000
PEERS_KEPT_MAX = 4096
MODELS_KEPT_MAX = 1024
SHARDS_PER_MODEL_KEPT_MAX = 1024
API_KEYS_KEPT_MAX = 1024
SETTINGS_KEPT_MAX = 1024
WITNESSES_KEPT_MAX = 256
CONSOLE_KEPT_MAX = 100
USAGE_DAYS_KEPT_MAX = 400
"""A little more than a year, so that a month can be compared with the same one a year before."""
USAGE_ROWS_PER_DAY_MAX = 1000
"""Callers times models of one day; what comes above is counted under `(others)`."""

# --- models and store ------------------------------------------------------------------------------
GGUF_HEADER_BYTES_MAX = 512 * 1024 * 1024
"""Metadata and tensor list together; the largest vocabularies with merges need about 20 MiB."""

GGUF_METADATA_COUNT_MAX = 16_384
"""Real files have 20 to 60 entries; some carry a few hundred."""

GGUF_TENSOR_COUNT_MAX = 131_072
"""512 layers (llama.cpp's own bound) of 256 tensors each."""

GGUF_KEY_BYTES_MAX = 65_535
"""From the GGUF specification."""

GGUF_TENSOR_NAME_BYTES_MAX = 63
"""GGML_MAX_NAME less its terminator: llama.cpp refuses longer ones."""

GGUF_STRING_BYTES_MAX = 16 * 1024 * 1024
"""Chat templates and precompiled character maps stay far below."""

GGUF_ARRAY_COUNT_MAX = 8 * 1024 * 1024
"""A vocabulary of 262,144 tokens with 600,000 merges is the largest known."""

GGUF_ALIGNMENT_BYTES_MAX = 1024 * 1024
GGUF_SPLIT_FILES_MAX = 1024
MODEL_LAYERS_MAX = 512
"""LLAMA_MAX_LAYERS: llama.cpp aborts above it."""

TENSOR_ROW_ELEMENTS_MAX = 2**31 - 1
CHUNK_BYTES = 1024 * 1024
"""Verified unit of a tensor: small against a layer, large against a round trip; 70B in Q4 is 40,000 of them."""

HEADER_BYTES_MAX = 64 * 1024 * 1024
"""GGUF metadata and tensor table; a 256k-token vocabulary with merges is about 12 MiB."""

MANIFEST_BYTES_MAX = 64 * 1024 * 1024
"""A 2 TB model has 64 MiB of chunk digests: more is a mistake or an attack."""

METADATA_ENTRIES_MAX = 65_536
METADATA_ARRAY_DEPTH_MAX = 4
TENSORS_MAX = 65_536
"""ggml names and finds tensors linearly; the largest MoE files have about 2,000."""

TENSOR_DIMENSIONS_MAX = 4
"""GGML_MAX_DIMS."""

TENSOR_NAME_BYTES_MAX = 64
"""GGML_MAX_NAME."""

MODEL_FILES_MAX = 512
MODEL_NAME_CHARS_MAX = 200
HEADER_OMIT_BYTES_MIN = 4096
"""Tokenizer arrays longer than this are left out of the manifest: only a head needs them."""

MODEL_NAMES_MAX = 16
"""Names of one model that other devices tell and are kept: people rename, but not that often."""

STORE_FREE_BYTES_MIN = 64 * 1024 * 1024
"""Left free on the disk: the record must still be able to write."""

STORE_FLUSH_BYTES = 32 * 1024 * 1024
"""Fetched bytes made durable at once; what a power cut may cost."""

HUB_TIMEOUT_S = 30.0
HUB_ATTEMPTS_MAX = 5
"""Connections that brought nothing, one after the other, before a pull is given up."""

HUB_RETRY_S = 1.0
HUB_FILES_MAX = 10_000
HUB_READ_BYTES = 256 * 1024
HUB_HEADER_FIRST_BYTES = 1024 * 1024
HUB_RANGE_BYTES = 8 * 1024 * 1024
"""Neighbouring chunks asked for in one range."""

HUB_GAP_BYTES_MAX = 4096
"""Padding between tensors is cheaper to fetch than another request."""

BLOB_REQUEST_BYTES_MAX = 64 * 1024
BLOB_RUNS_MAX = 1024
BLOB_CHUNKS_PER_REQUEST_MAX = 1024
BLOB_BATCH_CHUNKS = 16
"""Chunks a fetching node asks for at once: the longest a peer works after nobody wants the answer."""

BLOB_BATCH_BYTES = 8 * 1024 * 1024
BLOB_FRAME_TIMEOUT_S = 30.0
"""One chunk (1 MiB) must arrive within it: 35 kB/s, below which a holder is no help."""

BLOB_MANIFEST_TIMEOUT_S = 120.0
BLOB_IDLE_TIMEOUT_S = 120.0
"""How long a holder keeps a stream on which nothing is asked."""

BLOB_STREAMS_SERVED_MAX = 16
BLOB_HOLDERS_MAX = 8
BLOB_STEAL_AFTER_S = 2.0
"""An idle holder waits this long for the others before it is asked for what a slow one owes."""

BLOB_ATTEMPTS_MAX = 3
"""Streams to one holder that brought nothing, one after the other, before it is given up."""


# --- engine ----------------------------------------------------------------------------------------
STAGE_FRAMES_IN_FLIGHT_MAX = 64
"""Frames a stage holds at once; past it the stream's own back-pressure stops the sender."""

UNIT_BATCH_ROWS = 128
"""Rows of one llama_decode: its scratch memory grows with them."""

OUTPUT_UNIT_TOKENS = 64
"""An output without layers keeps nothing: room for one batch is enough."""

SESSIONS_QUEUED_MAX = 512
SESSIONS_ACTIVE_MAX = 16
"""Sequences of one llama.cpp context; more wait in the queue."""

PROMPT_CHARACTERS_MAX = 4_000_000
CONTEXT_TOKENS_MIN = 2048
CONTEXT_TOKENS_MAX = 16_384
NODE_MEMORY_BYTES_MAX = 200_000_000
"""What a node with its engines keeps resident beside its share of the models, before conversations fill the context
and the prefix cache: a device of 1 GB can still take part. Not enforced; `p2pnode status` shows it and the tests
hold it."""

KV_BYTES_DEFAULT = 48 * 1024 * 1024
"""Without a wish for more context a plan's key-value cache stays this small over all its devices."""

GPU_LAYERS_ALL = 100_000
"""What a device tells whose GPU is to have all layers: more than any model has."""

ADAPTED_KEPT_S = 60.0
"""Weights stay loaded this long for the plan that differs from an ended one in adapters alone."""

PREFILL_CHUNK_TOKENS = 64
"""Small enough that stages overlap (the last one begins, and the first one ends, a chunk late) and that decoding
sessions wait little; chunks of 128 are about 3 % quicker on one device, and 6 % slower for 512 tokens over two."""

PREFILL_CHUNKS_IN_FLIGHT = 4
REFILL_ROWS_IN_FLIGHT = 32
"""Single rows sent again after a loss: enough that no stage waits for the others, half of what a stage holds."""

PREFIX_BYTES_DEFAULT = 64 * 1024 * 1024
"""Keys and values that a plan keeps of finished requests, over all its devices; beside the cache itself in size."""

PREFIX_BYTES_MAX = 64 * 1024**3
PREFIX_TOKENS_MIN = 16
"""A shorter beginning is computed sooner than it is found on every stage."""

EMBEDDING_TOKENS_MAX = 512

KV_STATE_BYTES_MAX = 2**31 - 2**20
"""An engine's message is no longer, and a state must pass through one."""

KV_PIECE_BYTES = 1024 * 1024
KV_PIECE_S_MAX = 10.0
"""A piece that takes longer comes over a way on which computing the prompt here is quicker."""

KV_TRANSFERS_MAX = 8

# --- external servers --------------------------------------------------------------------------------
BACKENDS_MAX = 16
BACKEND_MODELS_MAX = 64
"""Of one server, and of all servers of another device: they are told in every status."""

NAME_OF_BACKEND_MODEL_CHARACTERS_MAX = 120
BACKEND_REQUESTS_MAX = 32
"""At one server at once; it has its own queue behind that."""

BACKEND_CONNECT_S_MAX = 3.0
BACKEND_LIST_S_MAX = 5.0
BACKEND_REFRESH_S = 15.0
BACKEND_SILENCE_S_MAX = 300.0
"""Servers load models when they are asked for them, and say nothing meanwhile."""

BACKEND_READ_BYTES = 64 * 1024
BACKEND_LINE_BYTES_MAX = 1024 * 1024
BACKEND_BODY_BYTES_MAX = 4 * 1024 * 1024
BACKEND_HEADERS_MAX = 100

RECOVERIES_MAX = 8
"""Without a token between them; a person who tries plans one after another moves a long answer more often."""
REPLAN_TRIES_MAX = 3
"""Devices that go while the plan that was to replace a broken one is being built."""

GOODBYE_S_MAX = 3.0
"""How long a leaving device keeps serving, so that others can move what runs on it."""

SILENCE_PING_S = 1.5
SPARE_PING_S = 0.5
"""A device that needs longer to answer is no good spare, and an answer waits for this."""

STAGE_ASK_AFTER_S = 0.5
"""Rows that are so much later than usual make the head ask whether the stages' devices are still there."""

FORWARD_SILENCE_S = 1.0
"""A device that answers whole and says nothing for so long is asked whether it is there at all."""

STAGE_SILENCE_S_MIN = 4.0
"""A stage that answered in milliseconds and then not for seconds sleeps or is gone."""

STAGE_ANSWER_S_MAX = 120.0
"""A prefill chunk on a slow device takes many seconds; one that takes minutes will not come."""

ENGINE_HEADER_BYTES_MAX = 1024 * 1024
"""A message header between node and engine: the longest is a load with many pieces or a long prompt."""
ENGINE_PAYLOAD_BYTES_MAX = 2 * 1024 * 1024 * 1024
"""The longest payload is the key-value state of a long session."""
ENGINE_SESSIONS_MAX = 256
"""llama.cpp's own bound on sequences in one context."""
ENGINE_CONTEXT_TOKENS_MAX = 4 * 1024 * 1024
ENGINE_BATCH_ROWS_MAX = 8192
ENGINE_THREADS_MAX = 512
ENGINE_PIECES_MAX = 65_536
ENGINE_UNITS_MAX = 64
ENGINE_CALLS_MAX = 4096
"""Calls waiting in one engine client; the scheduler keeps far fewer in flight."""
ENGINE_LOG_BYTES_MAX = 64 * 1024
"""How much of an engine's last words is kept."""
ENGINE_START_TIMEOUT_S = 30.0
ENGINE_CLOSE_TIMEOUT_S = 5.0
ADAPTERS_MAX = 16
ADAPTER_BYTES_MAX = 4 * 1024 * 1024 * 1024
"""Adapters of the largest models have some hundred megabytes; more would be no adapter."""
ADAPTER_SCALE_MAX = 100
"""How strongly an adapter may act; useful values are about 1."""
ADAPTER_PART_BYTES = 512 * 1024
"""One answer of `adapter.read`: well below a control message's limit."""
ENGINE_OPTIONS_CHARACTERS_MAX = 480
"""Engine options of a model as text: they are the value of a setting, which has at most 500."""
GRAMMAR_BYTES_MAX = 256 * 1024
REDUCE_PART_BYTES = 96 * 1024
"""One lock-step message between ranks: fits the socket buffers of every system."""
REDUCE_DIRECT_BYTES_MAX = 64 * 1024
"""Partial sums up to this go to every rank directly: latency counts, not volume."""
REDUCE_TIMEOUT_S = 20.0
"""A rank that computes a whole prefill chunk slower than this is as good as gone."""
RANKS_MAX = 16
LANE_DATAGRAM_BYTES_MIN = 256
LANE_DATAGRAM_BYTES_MAX = 65_000
LANE_DATAGRAM_BYTES = 1452
"""What every path of a local network carries whole."""
LANE_DATAGRAM_BYTES_LOOPBACK = 33_000
"""Between processes of one machine: a row of 8,192 columns in one datagram."""
LANE_MESSAGE_BYTES_MAX = REDUCE_PART_BYTES
LANE_HELLO_TIMEOUT_S = 2.0
LANE_MESSAGES_KEPT_MAX = 256
"""Frames on one lane that may be asked for again, and numbers remembered against giving one out twice."""
LANE_MESSAGES_PARTIAL_MAX = 32
"""Frames of which pieces are missing: 3 MB of the largest."""
RING_SILENCE_S_MIN = 3.0
"""A token that is not around by then takes the streams; one decoded token of a stage takes far less."""
RELAYED_FRAMES_TOLD_AT = 16
RELAYED_TOLD_S = 0.25
"""An engine tells its node of rows that passed by lanes in bunches: each telling takes time from what computes."""
LOGIT_BIAS_MAX = 4096
LOGPROBS_MAX = 64
PENALTY_TOKENS_MAX = 8192

# --- planner ---------------------------------------------------------------------------------------
PLAN_DEVICES_MAX = 64
WHAT_IF_CHANGES_MAX = 16
PLAN_REASONS_MAX = 200
PLAN_TEXT_CHARS_MAX = 1000
PLAN_PARALLEL_MAX = 64
PLAN_ALL_ORDERS_DEVICES_MAX = 5
"""120 orders; above it orders are built and improved instead of tried."""

PLAN_ORDER_TRIES_MAX = 120
PLAN_BALANCE_PRICE_MAX = 1.03
"""Decode time paid for even stages, which make prompts and several streams faster."""

PLAN_BALANCE_STEPS = 12
PLAN_GROUP_RANKS_MAX = 8
PLAN_GAIN_MIN = 1.1
"""A plan over several devices must be predicted this much faster than the best single one: predictions err."""

PLAN_SPARED_GAIN_MIN = 2.0
"""A device on its battery or with dear traffic is used where the plan is so many times as fast: people notice."""

ANSWER_TOKENS_ASSUMED = 128
"""By an answer of so many tokens devices are compared: the first token and what is fetched before it count too."""

RPC_EFFICIENCY = 0.87
"""llama.cpp's RPC with layer split against a raw loop, measured on two workers."""

RPC_ROUND_TRIPS = 4.0
"""Half round trips a hop: graph, tensors and results are separate messages."""

AUTO_HOLD_S = 120.0
"""A plan made by auto mode stays at least so long: loading costs more than a few per cent of speed."""

AUTO_SPEED_GAIN_MIN = 1.25
AUTO_QUALITY_GAIN_MIN = 1.2
AUTO_TOKENS_PER_S_MIN = 3.0
"""Slower than reading speed is no answer; a smaller model is."""

CALIBRATION_TOKENS_MIN = 8
CALIBRATION_WEIGHT = 0.3
CALIBRATION_STEP_MIN = 0.5
CALIBRATION_STEP_MAX = 2.0
CALIBRATION_FACTOR_MIN = 0.1
CALIBRATION_FACTOR_MAX = 10.0

MEASURE_DECODE_STEPS = 32
MEASURE_PREFILL_STEPS = 3
MEASURE_MEMORY_BYTES = 64 * 1024 * 1024
"""Far more than any cache, little beside a model."""

MEASURE_MEMORY_ROUNDS = 4
MEASURE_DISK_BYTES = 64 * 1024 * 1024
MEASURE_DISK_READ_BYTES = 1024 * 1024
MEASURE_KERNEL_SHARE = 0.3
"""Q4_K kernels of llama.cpp (12.7 GB/s) against plain summing (48 GB/s): they compute more than they read."""

MEASURE_SECONDS_MIN = 1e-6
"""A clock that did not move must not make a device infinitely fast."""

TENSOR_RTT_MAX_S = 0.002
"""Two all-reduces a layer: beyond 2 ms the network alone costs more than most layers."""

PREFILL_GAIN_ASSUMED = 4.0
"""Prompt tokens against decoded ones per second on two CPU cores; used until a device has measured it."""

RTT_ASSUMED_S = 0.01
LINK_ASSUMED_BYTES_PER_S = 10e6
"""A link nobody has timed is taken for slow Wi-Fi: an unknown one must not look attractive."""

HOP_PROCESSING_S = 0.0005
"""Tasks of the nodes on both sides of a hop, beside half a round trip: 1.46 ms for two hops on loopback, less one."""

REDUCE_PROCESSING_S = 0.0003
STEP_OVERHEAD_S = 0.0005
"""Handing a step to an engine and back, until a device has measured it."""

UNIT_BUFFER_BYTES = 48 * 1024 * 1024
"""An engine process with its code and graphs, beside weights, KV cache and room to compute."""

MASK_ROW_TOKEN_BYTES = 2
"""Attention mask: a float16 for each row and each position of the context."""


# --- api -------------------------------------------------------------------------------------------
API_BODY_BYTES_MAX = 4 * 1024 * 1024
"""A prompt of a million tokens is about this long; nothing else we accept comes near."""

API_HEADER_BYTES_MAX = 32 * 1024
"""Apache and nginx stop between 8 and 32 KiB; browsers with many cookies reach 16."""

API_BODY_TIMEOUT_S = 30.0
"""A body that drips slower than this is an attack or a dead link."""

API_RESPONSE_TIMEOUT_S = 60.0
"""For plain answers; streams have none, they end with their generation."""

API_STREAM_HEARTBEAT_S = 10.0
"""Proxies close idle connections after 15 to 60 s."""

API_STREAM_QUEUE_MAX = 256
"""Events waiting for one reader; a reader that is further behind is dropped."""

OLLAMA_TOKENS_DEFAULT = 2048
"""Longest answer of a request in Ollama's form that names no length: there it is the end of the context, here what is
set aside for one answer is not there for others."""
API_CHOICES_MAX = 16
API_STOP_SEQUENCES_MAX = 16
API_STOP_CHARS_MAX = 256
API_LOGIT_BIAS_MAX = 1024
API_LOGPROBS_MAX = 20
API_MESSAGES_MAX = 4096
API_TOOLS_MAX = 128
API_EMBEDDING_INPUTS_MAX = 256
API_REQUESTS_CONCURRENT_MAX = 512
"""Generations in flight through one API; more get 503 with Retry-After."""

API_LOADING_WAIT_S = 15.0
"""A request waits this long for its model; then 503 says how far it is. Most models are there by then, and clients
that try again twice cover three times as much."""
API_LOADING_LOOK_S = 0.2
"""How often a waiting request looks how far its model is: smooth for a bar, nothing for a processor."""
LOAD_ETA_SEEN_S_MIN = 1.0
LOAD_ETA_SEEN_FRACTION_MIN = 0.05
"""A time to go is told after this much of a step was seen; less would be a guess."""
LOG_FIND_EVENTS_MAX = 4000
"""Events one search looks at, on the node's own loop; who wants more asks again from where it ended."""
READY_LOOK_S = 2.0
"""How often the stages of plans that stand are asked whether they would compute: one small message a device."""
READY_ANSWER_S = 2.0
"""Who needs longer to count its steps while nothing runs would not answer a request in time either."""
READY_AGAIN_S = 10.0
"""After a plan could not be carried out again; devices that come back take some seconds to be linked."""
HOPS_LOOK_S = 0.5
"""How often the hops of a running answer are looked at: lively for an eye, one small message a device."""
TRACES_KEPT_MAX = 64
TRACE_SAMPLES_MAX = 1200
"""Ten minutes of one answer."""
LOAD_STALLED_S = 5.0
"""A step that says nothing for so long has no pace any more."""
COUNT_TIMEOUT_S = 1.0
"""An engine in the middle of a long step is not waited for by whoever reads metrics."""
WAIT_TOLD_EVERY_S = 5.0
"""A member whose request waits hears something this often, also that there is nothing new: two lost of them are within
the time that a caller waits for a control message."""
LOAD_TOLD_EVERY_S = 0.1
"""Live readers see at most ten steps of a bar a second."""
API_LIVE_READERS_MAX = 32
API_KEY_REQUESTS_PER_MINUTE = 600
API_GRAMMAR_BYTES_MAX = 64 * 1024

TEMPLATE_SOURCE_BYTES_MAX = 64 * 1024
"""The longest chat template in common use is about 15 KiB."""

TEMPLATE_OUTPUT_BYTES_MAX = 8 * 1024 * 1024
TEMPLATE_STEPS_MAX = 200_000
"""Loop turns and calls of one rendering; a 4,096-message conversation needs about a tenth."""

TEMPLATE_RENDER_TIMEOUT_S = 5.0

OIDC_DOCUMENT_BYTES_MAX = 256 * 1024
OIDC_TIMEOUT_S = 5.0
OIDC_KEYS_CACHE_S = 3600.0
OIDC_LEEWAY_S = 30.0
"""Clocks of a provider and of a home device differ by seconds."""

AGENT_STEPS_MAX = 32
"""A loop that has not found its answer by then is going in circles."""

AGENT_RESULT_CHARS_MAX = 16_384
"""What one tool may put into the prompt."""

AGENT_CALLS_MAX = 16
"""Tool calls of one step; a model that writes more is in a loop."""

MCP_SERVERS_MAX = 32
MCP_TOOLS_MAX = 256
"""Tools of one server; every one of them costs tokens of the prompt."""

MCP_MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""One message of a tool server; results are cut far below that."""

MCP_START_S_MAX = 20.0
"""From starting a tool server to its list of tools: interpreters are slow on small machines."""

MCP_CALL_S_MAX = 60.0
"""One tool call, unless the operator's file says otherwise."""

MCP_STDERR_BYTES_KEPT_MAX = 4096
"""The last words of a tool server that failed."""

CONSOLE_TIMEOUT_S_MAX = 120.0
CONSOLE_OUTPUT_BYTES_MAX = 256 * 1024

# --- tensor-xfer (OmniNode's form) -------------------------------------------------------------------
OMNI_MESSAGE_BYTES_MAX = FRAME_PAYLOAD_BYTES_MAX + 4096
"""A frame's payload with the words around it; OmniNode itself allows 128 MiB."""

OMNI_SESSION_ID_BYTES_MAX = 128
OMNI_ERROR_BYTES_MAX = 1024
OMNI_REQUESTS_MAX = 4
"""Requests read or computed at once: at most so many payloads are held."""

OMNI_SESSIONS_PER_STAGE_MAX = 4
OMNI_BODY_TIMEOUT_S = 30.0
"""A whole message must arrive, or be taken, within it."""

# --- node ------------------------------------------------------------------------------------------
PEER_ADDRESSES_MAX = 16
TICK_S = 2.0
RPC_SERVERS_MAX = 4
RPC_PIECE_BYTES = 256 * 1024
AUTO_INTERVAL_S = 30.0
AUTO_SETTLE_S = 1.0
"""After a change, for what comes with it: a device is there before it has said what it holds."""

MEASURE_LAYER_BYTES = 512 * 1024 * 1024
"""Weights that are timed: many times what the caches of processors hold, or all of them if the model has fewer."""

MEASURE_PREFILL_ROWS = 64
MEASURE_LOOK_S = 2.0
RATES_TOLD_MAX = 16
"""Models whose measured speed is part of a status, three numbers each."""

LINK_PINGS = 5
LINK_ECHO_BYTES = 256 * 1024
"""About the rows of a small chunk of prompt; with the pause below at most 440 bytes a second for each link."""

LINK_TIME_FRESH_S = 600.0
MEASURE_FRESH_MS = 24 * 3600 * 1000
MEASURE_S_MAX = 60.0
WITNESS_INTERVAL_S = 10.0
WITNESSES_WANTED = 3
WITNESS_RETRY_S = 1.0
LIVE_ITEMS_WAITING_MAX = 512
HOSTED_STAGES_MAX = 32
HELD_RANGES_MAX = 64
HOSTED_ALONE_S_MAX = 120.0
"""A head that is away for longer starts its plans anew: its stages give their memory back."""

PLAN_STAGES_MAX = 1024
LOOPBACK_WINDOW_BYTES = 4 * 1024 * 1024
TROUBLE_GRACE_S = 0.2
PREPARE_SILENCE_S_MAX = 60.0
"""Fetching and loading report progress; a device silent for a minute has stopped."""

ENGINE_RESTARTS_MAX = 5
ENGINE_RESTART_WINDOW_S = 300.0
"""An engine that dies more often than this is left dead, with the reason shown."""

FRAME_TIMEOUT_S = 10.0
FRAME_BYTES_PER_S_MIN = 64 * 1024
"""A frame that has begun: the slowest path on which a mesh is of any use, and ten seconds for its losses."""

STATUS_INTERVAL_S = 5.0
"""Half of js-libp2p's 10 s idle limit, so that status alone keeps a link open."""

STATUS_SILENCE_S_MAX = 30.0
"""Six intervals: a status stream that says nothing for so long is not one any more."""

INSTANCES_KEPT_MAX = 4
"""Starts of one member that are remembered to notice a second device under its identity; two would do."""

DUPLICATE_KEPT_S = 300.0
"""Two devices under one identity push each other out and come back after a pause of up to a minute."""

NETWORK_LOOK_S = 5.0
"""Listing the interfaces takes under a millisecond; a person with a laptop waits for less than this anyway."""

NETWORK_SETTLE_S = 1.0
"""A new interface gets its addresses one after the other."""

REDIAL_DELAY_S_MIN = 0.5
REDIAL_DELAY_S_MAX = 60.0
PROGRESS_MESSAGES_WAITING_MAX = 16
