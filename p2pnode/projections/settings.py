"""Settings: the newest value of each, who changed it and when."""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnode import limits
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.projections.fold import Handlers, JsonObject, forget_oldest, in_order


class Setting(msgspec.Struct, array_like=True):
    index: int
    value: str
    previous: str
    changed_by: str
    changed_ms: int


class Settings(msgspec.Struct):
    settings: dict[str, Setting] = {}

    def __post_init__(self) -> None:
        self.settings = in_order(self.settings)


def initial() -> Settings:
    return Settings()


def value_of(state: Settings, key: str, default: str = "") -> str:
    entry = state.settings.get(key)
    return default if entry is None else entry.value


def _setting_changed(state: Settings, record: Record, event: facts.SettingChanged) -> None:
    state.settings.pop(event.key, None)
    state.settings[event.key] = Setting(
        record.index, event.value, event.previous, record.actor, record.wall_ms
    )
    forget_oldest(state.settings, limits.SETTINGS_KEPT_MAX)


def view(state: Settings, now_ms: int) -> JsonObject:
    """{"settings": [{"key", "value", "previous", "changed_by", "changed_ms", "index"}]}, by key"""
    return {
        "settings": [
            {
                "key": key,
                "value": entry.value,
                "previous": entry.previous,
                "changed_by": entry.changed_by,
                "changed_ms": entry.changed_ms,
                "index": entry.index,
            }
            for key, entry in sorted(state.settings.items())
        ]
    }


HANDLERS: Final[Handlers] = {facts.SettingChanged: _setting_changed}
