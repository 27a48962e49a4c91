"""Engines: sessions, key-value caches, messages to an engine, ranks and lanes."""

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
