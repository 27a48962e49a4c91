"""Every bound of the project: the unit is in the name, the reason beside the number.

A peer's numbers are compared with these before anything is allocated.
"""

from __future__ import annotations

# --- time ------------------------------------------------------------------------------------------
CLOCK_SKEW_MS_MAX = 5 * 60 * 1000
"""Clocks of home devices drift; five minutes is what kerberos tolerates too."""

# --- transport -------------------------------------------------------------------------------------
MULTIADDR_CHARACTERS_MAX = 400
NAME_CHARACTERS_MAX = 64
TICKET_ADDRESSES_MAX = 8
TICKET_CHARACTERS_MAX = 2048
GRANT_BYTES_MAX = 512
MESH_MEMBERS_MAX = 256
"""Membership is exchanged whole; beyond this a mesh should be several."""

MESSAGE_BYTES_MAX = 1024 * 1024
"""One control message: the largest carries every grant of a full mesh (256 x 512 B) with room."""

CONTROL_TIMEOUT_S = 10.0
"""A member that does not answer a small question in ten seconds is treated as unreachable."""

# --- frames ----------------------------------------------------------------------------------------
FRAME_PAYLOAD_BYTES_MAX = 64 * 1024 * 1024
"""512 rows of 32,768 float32 values, the widest hidden state we would carry in one micro-batch."""

FRAME_ROWS_MAX = 8192
FRAME_COLUMNS_MAX = 262_144

# --- events and log --------------------------------------------------------------------------------
EVENT_BYTES_MAX = 65_535
"""An entry of a tlog-tiles bundle has a 16-bit length."""

# --- billing ---------------------------------------------------------------------------------------

# --- models and store ------------------------------------------------------------------------------

# --- engine ----------------------------------------------------------------------------------------

# --- planner ---------------------------------------------------------------------------------------
PLAN_DEVICES_MAX = 64

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

API_CHOICES_MAX = 16
API_STOP_SEQUENCES_MAX = 16
API_STOP_CHARS_MAX = 256
API_LOGIT_BIAS_MAX = 1024
API_LOGPROBS_MAX = 20
API_MESSAGES_MAX = 4096
API_TOOLS_MAX = 128
API_EMBEDDING_INPUTS_MAX = 256
API_JSON_DEPTH_MAX = 64
"""Deeper than any honest request; parsers recurse."""

API_REQUESTS_CONCURRENT_MAX = 512
"""Generations in flight through one API; more get 503 with Retry-After."""

API_LIVE_READERS_MAX = 32
API_KEY_REQUESTS_PER_MINUTE = 600
API_GRAMMAR_BYTES_MAX = 64 * 1024

TEMPLATE_SOURCE_BYTES_MAX = 64 * 1024
"""The longest chat template in common use is about 15 KiB."""

TEMPLATE_OUTPUT_BYTES_MAX = 8 * 1024 * 1024
TEMPLATE_STEPS_MAX = 200_000
"""Loop turns and calls of one rendering; a 4,096-message conversation needs about a tenth."""

TEMPLATE_RENDER_TIMEOUT_S = 5.0

CONSOLE_TIMEOUT_S_MAX = 120.0
CONSOLE_OUTPUT_BYTES_MAX = 256 * 1024

# --- node ------------------------------------------------------------------------------------------
