"""Other programs of this device: model servers, and OmniNode's form of passing tensors."""

from p2pnode.limits.transport import FRAME_PAYLOAD_BYTES_MAX

BACKENDS_MAX = 16
"""Addresses that may be named; all of them are asked for their models again and again."""

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

OMNI_MESSAGE_BYTES_MAX = FRAME_PAYLOAD_BYTES_MAX + 4096
"""A frame's payload with the words around it; OmniNode itself allows 128 MiB."""

OMNI_SESSION_ID_BYTES_MAX = 128
OMNI_ERROR_BYTES_MAX = 1024
OMNI_REQUESTS_MAX = 4
"""Requests read or computed at once: at most so many payloads are held."""

OMNI_SESSIONS_PER_STAGE_MAX = 4
OMNI_BODY_TIMEOUT_S = 30.0
"""A whole message must arrive, or be taken, within it."""
