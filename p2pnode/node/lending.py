"""When this device lends itself: its owner's word by hand, and the hours of its schedule. specs/19-schedule.md

All of it is in the record: the schedule is a setting, and every change of state a fact of the owner or of the schedule.
So whatever was missed while the node did not run is made up when it starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from p2pnode import commands as c
from p2pnode import limits
from p2pnode.errors import RequestError
from p2pnode.events.log import LOCAL
from p2pnode.facade import JsonObject
from p2pnode.logs import structlog
from p2pnode.node.ledger import Ledger
from p2pnode.projections.settings import value_of
from p2pnode.schedule import EXAMPLE, Now, Schedule, clock_text, wanted

SETTING: Final = "device.schedule"
ACTOR: Final = "schedule"
_IN: Final = " in "
_STATES: Final = {"taking": "active", "paused": "paused", "drained": "draining"}
_ZONE_CHARACTERS_MAX: Final = 64
_log = structlog.get_logger("p2pnode.node")


class Lending:
    """`enter` is told the state that other devices hear of; nothing is told once `may_change` says no."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        enter: Callable[[str], None],
        may_change: Callable[[], bool],
        is_busy: Callable[[], bool],
        now_ms: Callable[[], int],
    ) -> None:
        self._ledger = ledger
        self._enter = enter
        self._may_change = may_change
        self._is_busy = is_busy
        self._now_ms = now_ms
        self._changed = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    # --- the owner's word ----------------------------------------------------------------------------
    async def command(self, command: c.Command) -> JsonObject:
        """Paused, drained or resumed by hand; it holds until the schedule's next edge."""
        async with self._one_at_a_time:
            return {"state": await self._do(command, LOCAL)}

    async def set(self, entries: Sequence[str], zone: str = "") -> JsonObject:
        """Raises: RequestError for entries or a time zone that cannot be."""
        if sum(map(len, entries)) > 4 * limits.SCHEDULE_CHARACTERS_MAX:
            raise RequestError(f"a schedule has at most {limits.SCHEDULE_CHARACTERS_MAX} characters")
        schedule = Schedule.parse(entries)
        name = zone.strip() or local_zone()
        zone_of(name)
        return await self._change(schedule.text + _IN + name)

    async def set_text(self, text: str) -> JsonObject:
        """The same from one text: `ENTRY; ENTRY in ZONE`, without a zone this machine's; empty to clear it."""
        if not text.strip():
            return await self.clear()
        entries, _, zone = text.partition(_IN)
        return await self.set(entries.split(";"), zone)

    async def clear(self) -> JsonObject:
        return await self._change("")

    async def _change(self, value: str) -> JsonObject:
        if value != value_of(self._ledger.state.settings, SETTING):
            await self._ledger.do(c.ChangeSetting(key=SETTING, value=value))
        await self.look()
        self._changed.set()
        return {"schedule": self.view()}

    # --- what holds ----------------------------------------------------------------------------------
    def view(self) -> JsonObject | None:
        """{"entries", "zone", "open", "until_ms", "overridden", "says"}; None without a schedule."""
        found = self._standing()
        if found is None:
            return None
        schedule, zone, now = found
        return {
            "entries": schedule.text.split("; "),
            "zone": zone.key,
            "open": now.is_open,
            "until_ms": now.until_ms,
            "overridden": wanted(now, owner_ms=self._owner_ms, set_ms=self._set_ms) is None,
            "says": self.says(),
        }

    def says(self) -> str:
        """When this changes next, for people on any device; empty without a schedule, and where it never does."""
        found = self._standing()
        if found is None:
            return ""
        _, zone, now = found
        is_lending = self._ledger.state.node.work == "taking"
        at_ms = now.closes_ms if is_lending else now.opens_ms
        if at_ms is None:
            return ""
        return (
            f"lends itself {'until' if is_lending else 'again at'} {clock_text(at_ms, self._now_ms(), zone)}"
        )

    def _standing(self) -> tuple[Schedule, ZoneInfo, Now] | None:
        """The setting, read again each time: whoever folded the record anew may have found another one."""
        entries, _, name = value_of(self._ledger.state.settings, SETTING).partition(_IN)
        if not entries:
            return None
        try:
            schedule, zone = Schedule.parse(entries.split(";")), zone_of(name)
        except RequestError as error:  # of a newer version, or a zone that this machine's list lacks
            _log.warning("the schedule cannot be read", why=error.message)
            return None
        return schedule, zone, schedule.at(self._now_ms(), zone)

    @property
    def _owner_ms(self) -> int | None:
        node = self._ledger.state.node
        return node.work_ms if node.work_by == LOCAL else None

    @property
    def _set_ms(self) -> int:
        entry = self._ledger.state.settings.settings.get(SETTING)
        return 0 if entry is None else entry.changed_ms

    # --- carrying it out -----------------------------------------------------------------------------
    def restore(self) -> None:
        """As the record left it: a device that was paused stays so when its node starts again."""
        self._enter(_STATES[self._ledger.state.node.work])

    async def run(self) -> None:
        while True:
            self._changed.clear()
            await self.look()
            try:
                async with asyncio.timeout(self._patience_s()):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _patience_s(self) -> float:
        if self._ledger.state.node.work == "drained":
            return limits.SCHEDULE_DRAIN_LOOK_S
        found = self._standing()
        if found is None or found[2].until_ms is None:
            return limits.SCHEDULE_LOOK_S
        return min(limits.SCHEDULE_LOOK_S, max(0.0, (found[2].until_ms - self._now_ms()) / 1000))

    async def look(self) -> None:
        """Bring the device where its schedule wants it: after the hours it drains first, then pauses."""
        async with self._one_at_a_time:
            if not self._may_change():
                return
            found = self._standing()
            node = self._ledger.state.node
            if found is None:
                if node.work_by == ACTOR and node.work != "taking":
                    await self._do(c.ResumeDevice(reason="its schedule was cleared"), ACTOR)
                return
            want = wanted(found[2], owner_ms=self._owner_ms, set_ms=self._set_ms)
            if want is None:
                return
            if want and node.work != "taking":
                await self._do(c.ResumeDevice(reason=f"schedule: {found[0].text}"), ACTOR)
            elif not want and node.work == "taking":
                await self._do(c.DrainDevice(reason=f"schedule: {found[0].text}"), ACTOR)
            elif not want and node.work == "drained" and self._may_pause():
                await self._do(c.PauseDevice(reason=f"schedule: {found[0].text}"), ACTOR)

    def _may_pause(self) -> bool:
        drained_ms = self._now_ms() - self._ledger.state.node.work_ms
        return not self._is_busy() or drained_ms > 1000 * limits.SCHEDULE_DRAIN_S_MAX

    async def _do(self, command: c.Command, actor: str) -> str:
        await self._ledger.do(command, actor=actor)
        state = _STATES[self._ledger.state.node.work]
        self._enter(state)
        return state


def zone_of(name: str) -> ZoneInfo:
    """Raises: RequestError for a name that is no time zone."""
    try:
        if len(name) <= _ZONE_CHARACTERS_MAX:
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    raise RequestError(
        f"there is no time zone {name[:_ZONE_CHARACTERS_MAX]!r}",
        hint=f"they are called like Europe/Berlin: {EXAMPLE} --zone Europe/Berlin",
        param="zone",
    )


def local_zone() -> str:
    """The machine's time zone by name; UTC where it tells none."""
    from tzlocal import get_localzone_name

    try:
        return str(get_localzone_name() or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return "UTC"
