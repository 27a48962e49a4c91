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

# --- node ------------------------------------------------------------------------------------------
