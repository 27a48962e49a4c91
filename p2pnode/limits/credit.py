"""Who owes whom: holds, top-ups, welcomes and receipts."""

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
RECEIPTS_FACT_BYTES_MAX = 60_000
"""Receipts, signatures and keys in one fact: with its envelope it stays an entry of 65,535 bytes."""
RECEIPT_PARTS_MAX = 64
"""Stages of one device that one question asks receipts for; their receipts fit into one fact, or wait for the next."""
RECEIPT_TURNS_MAX = 16
"""Questions to one device after one another: a receipt that waited comes first, what is too much for one fact later."""
RECEIPT_CALL_S_MAX = 5.0
"""A receipt is asked for after the answer; a device that is gone by then is asked with the next one."""
RECEIPT_GATHER_S_MAX = 0.5
"""Receipts of one request wait so long for one another, to share a fact; devices wait 3 s for signatures."""
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
