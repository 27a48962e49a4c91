"""The engine's loop: take every message that has arrived, run one batch of one unit, and so on.

One thread; between messages it sleeps in `recv`.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from p2pnode import heap
from p2pnode.compute.engine_channel import Channel
from p2pnode.compute.engine_links import GroupLinks
from p2pnode.compute.engine_protocol import (
    Adapter,
    Buffer,
    Message,
    error_fields,
    frame_fields,
    frame_of,
    spec_of,
)
from p2pnode.compute.engine_rings import EngineRings
from p2pnode.compute.engine_step import Reply
from p2pnode.compute.engine_unit import Unit
from p2pnode.compute.engine_version import engine_version
from p2pnode.compute.llama_abi import gpu_memory
from p2pnode.errors import Busy, NotFound, P2PNodeError, RequestError, StageLost
from p2pnode.limits import ENGINE_UNITS_MAX

if TYPE_CHECKING:
    from p2pnode.compute.frame_lane import FrameLane

_PROGRESS_EVERY_S = 0.1

Answer = tuple[Message, Buffer]


class Engine:
    """Dispatches messages and drives the units' batches."""

    def __init__(self, channel: Channel, side: socket.socket) -> None:
        self._channel = channel
        self._groups = GroupLinks(side)
        self._rings = EngineRings(channel.send)
        self._units: dict[int, Unit] = {}
        self._next_unit = 1
        self._turn = 0
        self._operations: dict[str, Callable[[Message, memoryview], Answer | None]] = {
            "step": self._step,
            "load": self._load,
            "unload": self._unload,
            "open": self._open,
            "free": self._free,
            "cancel": self._cancel,
            "copy_prefix": self._copy_prefix,
            "keep_prefix": self._keep_prefix,
            "reuse_prefix": self._reuse_prefix,
            "forget_prefix": self._forget_prefix,
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
            "pieces": self._pieces,
            "state_get": self._state_get,
            "state_set": self._state_set,
            "adapters": self._adapters,
            "control_vector": self._control_vector,
            "stats": self._stats,
            "lane_open": self._lane_open,
            "link": self._link,
            "ring": self._ring,
            "relay": self._relay,
            "ring_step": self._ring_step,
            "ring_close": self._ring_close,
        }

    def run(self) -> None:
        """Until the node is gone."""
        about = {"pid": os.getpid(), "llama": engine_version(), "gpu_memory": gpu_memory()}
        self._channel.send({"id": 0, "hello": {**about, **heap.resident()}})
        while True:
            busy = any(unit.waiting for unit in self._units.values())
            while not busy or self._channel.ready():
                if busy or self._wait():
                    self._handle(*self._channel.receive())
                busy = any(unit.waiting for unit in self._units.values())
            self._rings.service()
            self._run_one_batch()

    def _wait(self) -> bool:
        """Sleep until a message comes; other engines may send frames meanwhile, or ask for what got lost."""
        groups = [unit.group for unit in self._units.values() if unit.group is not None]
        others = [number for group in groups for number in group.filenos()]
        if self._channel.ready([*others, *self._rings.filenos], self._rings.wait_s()):
            return True
        for group in groups:
            group.service()
        self._rings.service()
        self._rings.tell_if_due()
        return False

    def _handle(self, message: Message, payload: memoryview) -> None:
        call = message.get("id", 0)
        self._rings.tell()
        try:
            operation = self._operations.get(str(message.get("op")))
            if operation is None:
                raise RequestError(f"an engine has no operation {message.get('op')!r}")
            answer = operation(message, payload)
        except P2PNodeError as exc:
            self._channel.send({"id": call, "error": error_fields(exc)})
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            MemoryError,
            OSError,
        ) as exc:
            bad = RequestError(f"the engine cannot use this message: {type(exc).__name__}: {exc}")
            self._channel.send({"id": call, "error": error_fields(bad)})
        else:
            if answer is not None:
                self._channel.send({"id": call, **answer[0]}, answer[1])

    def _run_one_batch(self) -> None:
        units = list(self._units.values())
        for step in range(len(units)):
            unit = units[(self._turn + step) % len(units)]
            if unit.waiting:
                self._turn += step + 1
                self._gather(unit)
                if unit.waiting:  # what came meanwhile may have been the end of it
                    self._answer(unit.run_batch())
                return

    def _gather(self, unit: Unit) -> None:
        """Messages that come within a moment may belong into this batch."""
        wait_s = unit.gather.wait_s() if unit.may_grow() else 0.0
        if not wait_s:
            return
        deadline, came, had = time.monotonic() + wait_s, False, unit.waiting_count
        while unit.waiting and unit.may_grow() and (left := deadline - time.monotonic()) > 0:
            if self._channel.ready(self._rings.filenos, left):
                self._handle(*self._channel.receive())
            self._rings.service()
            came = came or unit.waiting_count > had
        unit.gather.waited(came=came)

    def _answer(self, replies: Iterable[Reply]) -> None:
        for reply in replies:
            if reply.then is not None:
                reply.then(reply)
                continue
            if reply.error is not None:
                self._channel.send({"id": reply.call, "error": error_fields(reply.error)})
                continue
            times = reply.timings
            header: Message = {
                "id": reply.call,
                "t": [times.waited_ns, times.compute_ns, times.tap_ns, times.sample_ns, times.batched_rows],
            }
            payload: Buffer = b""
            if reply.frame is not None:
                header["frame"], payload = frame_fields(reply.frame), reply.frame.payload
            else:
                header["tokens"] = [
                    [item.token, item.piece, item.is_eog, item.logprob, item.top] for item in reply.sampled
                ]
            self._channel.send(header, payload)

    def _unit(self, message: Message) -> Unit:
        unit = self._units.get(message["unit"])
        if unit is None:
            raise NotFound(f"this engine has no unit {message['unit']}")
        return unit

    # operations
    def _step(self, message: Message, payload: memoryview) -> None:
        frame = frame_of(message["frame"], payload)
        self._unit(message).submit(
            message["id"], frame, sample=bool(message.get("sample")), ahead=bool(message.get("ahead"))
        )

    def _load(self, message: Message, payload: memoryview) -> Answer:
        if len(self._units) >= ENGINE_UNITS_MAX:
            raise Busy(f"this engine already holds {ENGINE_UNITS_MAX} units")
        spec = spec_of(message["spec"], payload)
        last = [0.0]

        def progress(done: float) -> bool:
            now = time.monotonic()
            if now - last[0] >= _PROGRESS_EVERY_S:
                last[0] = now
                self._channel.send({"id": message["id"], "progress": done})
            return True

        unit = Unit(self._next_unit, spec, progress)
        unit.relayed = self._rings.observer(unit.unit_id)
        self._units[unit.unit_id] = unit
        self._next_unit += 1
        heap.let_files_go()
        heap.give_back()  # names of a vocabulary, read once and copied
        return {"info": asdict(unit.info()), **heap.resident()}, b""

    def _unload(self, message: Message, _payload: memoryview) -> Answer:
        unit = self._unit(message)
        self._rings.drop(unit.unit_id)
        self._groups.close_unlinked(unit.unit_id)
        del self._units[unit.unit_id]
        self._answer(unit.cancel_all())
        unit.close()
        heap.give_back()
        return heap.resident(), b""

    def _open(self, message: Message, _payload: memoryview) -> Answer:
        self._unit(message).sessions.open(message["session"], message["params"], message["prompt"])
        return {}, b""

    def _free(self, message: Message, _payload: memoryview) -> Answer:
        self._leave_ring(message)
        self._answer(self._unit(message).free_session(message["session"]))
        return {}, b""

    def _cancel(self, message: Message, _payload: memoryview) -> Answer:
        self._leave_ring(message)
        self._answer(self._unit(message).cancel(message["session"]))
        return {}, b""

    def _leave_ring(self, message: Message) -> None:
        for ring in self._rings.through(message["unit"]):
            ring.forget(message["session"])

    def _copy_prefix(self, message: Message, _payload: memoryview) -> Answer:
        self._unit(message).settle(message["source"])
        self._unit(message).settle(message["target"])
        self._unit(message).sessions.copy_prefix(message["source"], message["target"], message["count"])
        return {}, b""

    def _keep_prefix(self, message: Message, _payload: memoryview) -> Answer:
        return {"bytes": self._unit(message).arrange("keep", message["session"], message["count"])}, b""

    def _reuse_prefix(self, message: Message, _payload: memoryview) -> Answer:
        self._unit(message).arrange("reuse", message["session"], message["prefix"], message["count"])
        return {}, b""

    def _forget_prefix(self, message: Message, _payload: memoryview) -> Answer:
        self._unit(message).arrange("forget", message["prefix"])
        return {}, b""

    def _tokenize(self, message: Message, payload: memoryview) -> Answer:
        model = self._unit(message).model
        ids = model.tokenize(
            bytes(payload), add_special=message["add_special"], parse_special=message["parse_special"]
        )
        return {"count": len(ids)}, memoryview((ctypes.c_int32 * len(ids))(*ids)).cast("B")

    def _detokenize(self, message: Message, payload: memoryview) -> Answer:
        model = self._unit(message).model
        ids = list(payload.cast("i"))
        text = model.detokenize(
            ids, remove_special=message["remove_special"], unparse_special=message["unparse_special"]
        )
        return {}, text

    def _pieces(self, message: Message, payload: memoryview) -> Answer:
        model = self._unit(message).model
        return {
            "pieces": [model.piece(token, special=message["special"]) for token in payload.cast("i")]
        }, b""

    def _state_get(self, message: Message, _payload: memoryview) -> Answer:
        self._unit(message).settle(message["session"])
        return {}, self._unit(message).sessions.state(message["session"])

    def _state_set(self, message: Message, payload: memoryview) -> Answer:
        self._unit(message).settle(message["session"])
        return {"positions": self._unit(message).sessions.set_state(message["session"], payload)}, b""

    def _adapters(self, message: Message, _payload: memoryview) -> Answer:
        self._unit(message).settle_all()
        self._unit(message).adapters.set([Adapter(*item) for item in message["adapters"]])
        self._unit(message).sessions.forget_all()
        return {}, b""

    def _control_vector(self, message: Message, payload: memoryview) -> Answer:
        self._unit(message).settle_all()
        self._unit(message).adapters.set_control_vector(payload, message["layer_first"], message["layer_end"])
        self._unit(message).sessions.forget_all()
        return {}, b""

    def _lane_open(self, message: Message, _payload: memoryview) -> Answer:
        host, count, unit_id = str(message["host"]), int(message["count"]), int(message.get("unit", 0))
        return {"ports": self._groups.open_lanes(host, count, unit_id)}, b""

    def _link(self, message: Message, payload: memoryview) -> Answer:
        unit = self._unit(message)
        group = self._groups.make(
            unit.spec.rank, message["links"], bytes(payload), half=bool(message["half"])
        )
        unit.join_group(group)
        heap.let_files_go()  # the first lane brought the cipher's library
        return {}, b""

    def _ring(self, message: Message, payload: memoryview) -> None:
        """Both lanes of a head: onward, and back."""
        first = self._units[message["first"]] if message["first"] else None
        output, stages = self._unit(message), max(1, int(message["stages"]))
        lanes = self._frame_lanes(message, payload)

        def answer(reply: Reply) -> None:
            self._answer([reply])

        def ring() -> Message:
            return {"ring": self._rings.open_ring(first, output, lanes, stages, answer)}

        units = [unit.unit_id for unit in (first, output) if unit is not None]
        self._rings.greet(message["id"], units, lanes, ring)

    def _ring_close(self, message: Message, _payload: memoryview) -> Answer:
        self._rings.close_ring(message["ring"])
        return {}, b""

    def _relay(self, message: Message, payload: memoryview) -> None:
        unit, stages = self._unit(message), max(1, int(message["stages"]))
        lanes = self._frame_lanes(message, payload)

        def relay() -> Message:
            self._rings.open_relay(unit, lanes, stages)
            return {}

        self._rings.greet(message["id"], [unit.unit_id], lanes, relay)

    def _frame_lanes(self, message: Message, payload: memoryview) -> list[FrameLane]:
        lanes = self._groups.frame_lanes(message["lanes"], bytes(payload))
        heap.let_files_go()  # the first lane brought the cipher's library
        return lanes

    def _ring_step(self, message: Message, payload: memoryview) -> None:
        ring = self._rings.ring(message["ring"])
        if ring is None:
            raise StageLost("this ring is not there any more")
        ring.submit(message["id"], frame_of(message["frame"], payload), ahead=bool(message["ahead"]))

    def _stats(self, _message: Message, _payload: memoryview) -> Answer:
        units = {unit_id: unit.stats() for unit_id, unit in self._units.items()}
        return {"units": units, "lane_bytes": self._groups.moved, **heap.resident()}, b""
