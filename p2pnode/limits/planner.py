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
CALIBRATION_KEPT_MAX = 1024
"""64 devices with 16 models each."""

CALIBRATION_RATE_RATIO_MAX = 1.3
"""A factor learned over a rate says nothing of another one, which was timed since."""

CALIBRATION_WEIGHT = 0.3
CALIBRATION_STEP_MIN = 0.5
CALIBRATION_STEP_MAX = 2.0
CALIBRATION_FACTOR_MIN = 0.1
CALIBRATION_FACTOR_MAX = 10.0

MEASURE_ROUNDS = 3
MEASURE_PAUSE_S = 0.25
"""Rounds a moment apart: other work that comes and goes disturbs some of them and not all."""

MEASURE_DECODE_STEPS = 8
"""In each round without context, and as many with."""

MEASURE_YIELD_S = 0.1
"""So soon a timing gives way to a request."""

MEASURE_CONTEXT_CHUNKS = 2
"""Of MEASURE_PREFILL_ROWS rows each: what a decoded row is compared with in the second half of a round."""

MEASURE_SPREAD_MAX = 1.3
"""Rounds of one timing on an idle machine differ by some per cent; beside a compiler by half or more."""

MEASURE_OTHERS_MAX = 0.15
"""Of all processors: below it a timing is as good as on an idle machine, within what predictions promise."""

MEASURE_DOUBT_RATIO = 1.3
"""Time of a token over the predicted, or the other way round: beyond it the device times its layers again."""

MEASURE_LIKE_RATIO = 1.15
"""Two timings of one machine on two days."""

MEASURE_AGAIN_MS_MIN = 5 * 60 * 1000
MEASURE_AGAIN_GROWTH = 4
MEASURE_AGAIN_MS_MAX = 6 * 3600 * 1000
"""Pauses of 5 min, 20 min, 80 min … six hours: at most eight timings a day of a machine that is never quiet."""

MEASURE_WAIT_MS = 15 * 60 * 1000
"""So long a timing that is due waits for other programs to be quiet: beside them it would bring little."""
MEASURE_DOUBTED_WAIT_MS = 60_000
"""The same where a request showed that what is known is wrong: any timing is better."""

MEASURE_DOUBT_MS_MIN = 60_000
"""What was timed a moment ago is not doubted at once: plans would change while they are tried."""

CONTEXT_ASSUMED_TOKENS = 128
"""What a decoded token is compared with in a prediction: a question, and half of an answer to it."""

CONTEXT_BYTES_PER_S_MAX = 1e15
"""Keys and values so few that no clock sees them."""

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
