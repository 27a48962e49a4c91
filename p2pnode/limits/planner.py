"""Plans: how many are tried, what must speak for one, what is assumed until it is measured."""

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
