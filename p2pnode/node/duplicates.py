"""Tells all concerned that two devices run under one identity: the record, the members, both devices themselves."""

from __future__ import annotations

from collections.abc import Callable

from p2pnode import limits
from p2pnode.errors import DuplicateIdentity
from p2pnode.events import types as facts
from p2pnode.logs import structlog
from p2pnode.node.instances import Instance, Instances, describe_clashes, read_clashes
from p2pnode.transport import messages
from p2pnode.units import PeerId

_log = structlog.get_logger("p2pnode.node")


class Duplicates:
    def __init__(
        self,
        *,
        me: PeerId,
        mine: Instance,
        record: Callable[[facts.IdentityDuplicated], None],
        changed: Callable[[], None],
        name_of: Callable[[PeerId], str],
        now_s: Callable[[], float],
    ) -> None:
        self._me = me
        self.mine = mine
        self._record = record
        self._changed = changed
        self._name_of = name_of
        self._now_s = now_s
        self._seen = Instances()
        self._told_at_s: dict[Instance, float] = {}
        """Other holders of this node's own identity, and when a member last spoke of them."""
        self._recorded_at_s: dict[PeerId, float] = {}

    def status(self) -> dict[str, object]:
        """For the status: which instance this is, and whom it saw twice."""
        said: dict[str, object] = {"instance": self.mine.as_dict()}
        if clashes := self._seen.clashes(self._now_s()):
            said["duplicates"] = describe_clashes(clashes)
        return said

    def heard(self, peer: PeerId, status: messages.Status) -> None:
        instance = Instance.read(status.extra.get("instance"))
        if instance is not None and (clash := self._seen.heard(peer, instance, self._now_s())) is not None:
            self._tell(peer, *clash)
            self._changed()  # both hear of each other with the next status, which is now
        others = read_clashes(status.extra.get("duplicates")).get(self._me, [])
        # A member that speaks of two others under this identity speaks of the past, or of nothing.
        if self.mine.id in {other.id for other in others}:
            for other in others:
                self._told(other)

    def _told(self, other: Instance) -> None:
        if other.id == self.mine.id:
            return
        is_news = other not in self._told_at_s
        self._told_at_s[other] = self._now_s()
        while len(self._told_at_s) > limits.INSTANCES_KEPT_MAX:
            del self._told_at_s[next(iter(self._told_at_s))]
        if is_news:
            self._tell(self._me, self.mine, other)

    def _tell(self, peer: PeerId, one: Instance, other: Instance) -> None:
        """Once in a while for each member: one that invents instances must not fill the record."""
        now_s = self._now_s()
        if now_s - self._recorded_at_s.get(peer, -limits.DUPLICATE_KEPT_S) < limits.DUPLICATE_KEPT_S:
            return
        self._recorded_at_s[peer] = now_s
        error = self._condition(peer, [one, other])
        _log.error(error.message, hint=error.hint)
        self._record(facts.IdentityDuplicated(peer=peer, device=one.host, other_device=other.host))

    def of(self, peer: PeerId) -> DuplicateIdentity | None:
        """What is wrong with the identity of a member, or of this node, now."""
        now_s = self._now_s()
        if peer == self._me:
            since = {
                other: at for other, at in self._told_at_s.items() if now_s - at <= limits.DUPLICATE_KEPT_S
            }
            self._told_at_s = since
            return self._condition(peer, [self.mine, *since]) if since else None
        clash = self._seen.clashes(now_s).get(peer)
        return self._condition(peer, clash) if clash else None

    def _condition(self, peer: PeerId, instances: list[Instance]) -> DuplicateIdentity:
        hosts = [instance.host for instance in instances]
        if peer == self._me:
            return DuplicateIdentity(
                f"this device's identity also runs on {' and on '.join(hosts[1:])}: its data folder was copied",
                peer=peer,
                hosts=hosts,
            )
        return DuplicateIdentity(
            f"two devices run under the identity of {self._name_of(peer)}: {' and '.join(hosts)}",
            peer=peer,
            hosts=hosts,
        )

    def forget(self, peer: PeerId) -> None:
        self._seen.forget(peer)
