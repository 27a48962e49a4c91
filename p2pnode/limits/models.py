"""Model files, the store of their chunks, and where chunks come from."""

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

SHARD_TILE_VALUES_MIN = 32
"""Rows of a tile, and its columns where a quantisation block has no more: what feed-forward networks are cut at."""

SHARD_TILES_PER_LINE_MAX = 4096
"""131,072 rows or columns in blocks of 32: what is hashed side by side. A tensor with more comes in whole chunks."""

SHARD_TILES_MAX = 1024 * 1024
"""32 MiB of digests; a dense model of 70B has 200,000 tiles. A model with more has no shard table."""

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

BLOB_BATCH_TILES = 128
"""Tiles are 10 to 1,024 KiB: with few of them in a batch, small ones would wait for round trips."""

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
