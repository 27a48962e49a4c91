"""The record: events, blocks, checkpoints and their witnesses, and what is kept folded from it."""

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

FRAUDS_TOLD_MAX = 64
"""Proofs told to a member each time it connects, the newest; 16 KiB each at most."""
FRAUDS_AHEAD_MAX = 8
"""Proofs kept of each member that told them, against devices not known here yet: 128 KiB."""

WITNESS_HEARD_MAX = 16
"""Different checkpoints of one log that wait to be compared; more come again with the next status."""

LOG_FIND_EVENTS_MAX = 4000
"""Events one search looks at, on the node's own loop; who wants more asks again from where it ended."""

REQUESTS_KEPT_MAX = 1000
PLANS_KEPT_MAX = 256
INVITES_KEPT_MAX = 1000
INVITE_S_MAX = 30 * 86_400
"""A ticket that lies about for longer is forgotten, and whoever finds it is let in."""
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
