"""The HTTP faces: requests, templates, sign-in, agents and their tools, the console."""

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

API_STREAM_AHEAD_MAX = 4
"""Events of an answer read before its reader took the last one: enough for one to be written while the next is made."""

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

INVITE_PAGE_REQUESTS_PER_MINUTE = 60
"""Of one address, without a key: a page, its words and the program are three."""
INVITE_ARCHIVE_S_MAX = 600.0
"""For the slowest network that it is worth waiting on."""
INVITE_ARCHIVE_BYTES_MAX = 64 * 1024 * 1024
"""The program with its demo model is about 7 MB."""
