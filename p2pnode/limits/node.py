"""A node among others: what it asks of them, how long it waits, what it remembers."""

PEER_ADDRESSES_MAX = 16
TICK_S = 2.0
RPC_SERVERS_MAX = 4
RPC_PIECE_BYTES = 256 * 1024
AUTO_INTERVAL_S = 30.0
AUTO_SETTLE_S = 1.0
"""After a change, for what comes with it: a device is there before it has said what it holds."""

MEASURE_LAYER_BYTES = 512 * 1024 * 1024
"""Weights that are timed: many times what the caches of processors hold, or all of them if the model has fewer."""

MEASURE_PREFILL_ROWS = 64
MEASURE_LOOK_S = 2.0
RATES_TOLD_MAX = 16
"""Models whose measured speed is part of a status, three numbers each."""

RATES_KEPT_MAX = 64
"""Models whose measured speed is kept on disk; beyond it the oldest of those that are no longer here go."""

LINK_PINGS = 5
LINK_ECHO_BYTES = 256 * 1024
"""About the rows of a small chunk of prompt; with the pause below at most 440 bytes a second for each link."""

LINK_TIME_FRESH_S = 600.0
MEASURE_FRESH_MS = 24 * 3600 * 1000
MEASURE_S_MAX = 60.0
WITNESS_INTERVAL_S = 10.0
WITNESSES_WANTED = 3
WITNESS_RETRY_S = 1.0
LIVE_ITEMS_WAITING_MAX = 512
HOSTED_STAGES_MAX = 32
HELD_RANGES_MAX = 64
HOSTED_ALONE_S_MAX = 120.0
"""A head that is away for longer starts its plans anew: its stages give their memory back."""

PLAN_STAGES_MAX = 1024
LOOPBACK_WINDOW_BYTES = 4 * 1024 * 1024
TROUBLE_GRACE_S = 0.2
PREPARE_SILENCE_S_MAX = 60.0
"""Fetching and loading report progress; a device silent for a minute has stopped."""

ENGINE_RESTARTS_MAX = 5
ENGINE_RESTART_WINDOW_S = 300.0
"""An engine that dies more often than this is left dead, with the reason shown."""

FRAME_TIMEOUT_S = 10.0
FRAME_BYTES_PER_S_MIN = 64 * 1024
"""A frame that has begun: the slowest path on which a mesh is of any use, and ten seconds for its losses."""

STATUS_INTERVAL_S = 5.0
"""Half of js-libp2p's 10 s idle limit, so that status alone keeps a link open."""

STATUS_SILENCE_S_MAX = 30.0
"""Six intervals: a status stream that says nothing for so long is not one any more."""

SILENCE_LOOK_S = 1.0
SILENCE_ASK_S = 2.0
"""Statuses come every 5 s both ways, so a quiet link is asked a few times in that; a sign of life is one packet."""

SILENCE_UNANSWERED_SUSPECT = 1
SILENCE_UNANSWERED_MAX = 7
"""One question a second: after some 9 s without a packet a device is gone, also for requests (10 s). QUIC repeats
each question by itself, so that lost packets alone do not make it so long."""

INSTANCES_KEPT_MAX = 4
"""Starts of one member that are remembered to notice a second device under its identity; two would do."""

DUPLICATE_KEPT_S = 300.0
"""Two devices under one identity push each other out and come back after a pause of up to a minute."""

NETWORK_LOOK_S = 5.0
"""Listing the interfaces takes under a millisecond; a person with a laptop waits for less than this anyway."""

NETWORK_SETTLE_S = 1.0
"""A new interface gets its addresses one after the other."""

DIRECTION_PROBE_S = 600.0
"""Whether a device that came by itself is reached from here as well: people change routers, and not by the minute."""
DIRECTION_PROBE_AGAIN_S = 30.0
"""Sooner while it cannot: somebody may be at the firewall. One datagram for each of its addresses."""
DIRECTIONS_PASSED_ON_MAX = 64
"""Of what others told of their ways: those that fail."""
DIRECTION_TRIED_MAX = 4
DIRECTION_TEXT_CHARACTERS_MAX = 160
"""An address by name with its port, or one reason; with the bounds above at most 83 KB of a status, mostly none."""
LINKS_SHOWN_MAX = 512
"""Pairs of devices: all of 32 devices; in larger meshes this device's own and those with trouble come first."""

REDIAL_DELAY_S_MIN = 0.5
REDIAL_DELAY_S_MAX = 60.0
PROGRESS_MESSAGES_WAITING_MAX = 16

RECOVERIES_MAX = 8
"""Without a token between them; a person who tries plans one after another moves a long answer more often."""
REPLAN_TRIES_MAX = 3
"""Devices that go while the plan that was to replace a broken one is being built."""

GOODBYE_S_MAX = 3.0
"""How long a leaving device keeps serving, so that others can move what runs on it."""

SILENCE_PING_S = 1.5
SPARE_PING_S = 0.5
"""A device that needs longer to answer is no good spare, and an answer waits for this."""

STAGE_ASK_AFTER_S = 0.5
"""Rows that are so much later than usual make the head ask whether the stages' devices are still there."""

FORWARD_SILENCE_S = 1.0
"""A device that answers whole and says nothing for so long is asked whether it is there at all."""

FEDERATED_MESHES_MAX = 16
"""Other meshes that may be asked: friends, the office; each costs a few connections."""

OTHER_MESH_MEMBERS_ASKED_MAX = 4
"""Of each: enough that one may be off, and no guest talks to a whole mesh."""

OTHER_MESHES_REFRESH_S = 30.0
"""What is offered changes when people change it; who is gone is noticed when it is asked."""

OTHER_MESHES_TROUBLE_S = 5.0
"""One that cannot be asked is looked for again so soon; the dial before goes on for 10 s and takes no new address."""

OTHER_MESH_OPEN_S_MAX = 3.0
"""Ten round trips of the slowest link in use; an answer waits for this before it goes elsewhere."""

TOLD_MODELS_MAX = 128
TOLD_TEMPLATE_CHARACTERS_MAX = 65_536
"""The longest chat templates in use have about 20,000; 128 such models are 8 MiB of a guest's memory."""

STAGE_SILENCE_S_MIN = 4.0
"""A stage that answered in milliseconds and then not for seconds sleeps or is gone."""

STAGE_ANSWER_S_MAX = 120.0
"""A prefill chunk on a slow device takes many seconds; one that takes minutes will not come."""

LOAD_ETA_SEEN_S_MIN = 1.0
LOAD_ETA_SEEN_FRACTION_MIN = 0.05
"""A time to go is told after this much of a step was seen; less would be a guess."""

READY_LOOK_S = 2.0
"""How often the stages of plans that stand are asked whether they would compute: one small message a device."""
READY_ANSWER_S = 2.0
"""Who needs longer to count its steps while nothing runs would not answer a request in time either."""
READY_AGAIN_S = 10.0
"""After a plan could not be carried out again; devices that come back take some seconds to be linked."""
HOPS_LOOK_S = 0.5
"""How often the hops of a running answer are looked at: lively for an eye, one small message a device."""
TRACES_KEPT_MAX = 64
TRACE_SAMPLES_MAX = 1200
"""Ten minutes of one answer."""
LOAD_STALLED_S = 5.0
"""A step that says nothing for so long has no pace any more."""
COUNT_TIMEOUT_S = 1.0
"""An engine in the middle of a long step is not waited for by whoever reads metrics."""
WAIT_TOLD_EVERY_S = 5.0
"""A member whose request waits hears something this often, also that there is nothing new: two lost of them are within
the time that a caller waits for a control message."""
LOAD_TOLD_EVERY_S = 0.1
"""Live readers see at most ten steps of a bar a second."""

SCHEDULE_ENTRIES_MAX = 16
"""Two for every day of the week and two to spare."""
SCHEDULE_CHARACTERS_MAX = 400
"""With its time zone it is one setting, and one fact."""
SCHEDULE_LOOK_S = 20.0
"""A machine that slept, or whose clock was set, notices an edge so soon; else it waits for the edge itself."""
SCHEDULE_DRAIN_LOOK_S = 1.0
SCHEDULE_DRAIN_S_MAX = 120.0
"""After the hours: answers move within seconds; who cannot move one in two minutes loses it."""
LENDING_CHARACTERS_MAX = 80
"""What a device tells of its hours in a status: one short sentence."""

TRACEPARENT_CHARACTERS_MAX = 55
TRACES_CLOSE_S_MAX = 3.0
"""How long a node that stops waits for the collector of its traces."""
