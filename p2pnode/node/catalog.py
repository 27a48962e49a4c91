"""Models of the mesh as this node sees them: what is on its disk, what others hold, and how to get parts."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from p2pnode import limits
from p2pnode.compute.gguf import ModelIndex, open_model
from p2pnode.errors import BadModelFile, DataDirError, DiskFull, ModelIncomplete, ModelUnknown, P2PNodeError
from p2pnode.models import cid
from p2pnode.models.blob_client import Holder
from p2pnode.models.exchange import FetchResult
from p2pnode.models.manifest import Manifest, Want
from p2pnode.models.source import FileSource, PeerSource
from p2pnode.models.store import DEMO_NAME, ModelStore
from p2pnode.models.strips import Strip
from p2pnode.node.link import Link
from p2pnode.node.links import Links
from p2pnode.node.model_check import check_model
from p2pnode.units import ContentId, PeerId

BLOB = "/p2pnode/blob/1"

FetchProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One model by content id, with everybody who says they hold all of it or a part."""

    name: str
    content_id: ContentId
    summary: dict[str, Any]
    is_local: bool
    is_complete_here: bool
    holders: tuple[str, ...] = field(default=())
    aliases: tuple[str, ...] = field(default=())
    """Other names for the same bytes: of this device, or where it has not all of them, of those that have."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    def is_called(self, name: str) -> bool:
        return name == self.content_id or name in self.names

    def as_called(self, name: str) -> KnownModel:
        """The same under that of its names."""
        if name not in self.aliases:
            return self
        return replace(self, name=name, aliases=tuple(each for each in self.names if each != name))


class Catalog:
    """Looks models up by name and brings their bytes here; thread work is handed off, never blocking the loop."""

    def __init__(
        self,
        store: ModelStore,
        links: Links,
        *,
        report: Callable[[str, P2PNodeError], None],
        default_name: Callable[[], str],
        check_file: Callable[[Path], Awaitable[None]] = check_model,
    ) -> None:
        self.store = store
        self._links = links
        self._report = report
        self._default_name = default_name
        self._check_file = check_file
        self._indexes: dict[ContentId, ModelIndex] = {}
        """Without vocabularies: those take megabytes, and are read again when an engine needs one."""
        self._texts: dict[ContentId, dict[str, Any]] = {}
        self._metadata: dict[ContentId, dict[str, Any]] = {}
        self.bytes_fetched: dict[ContentId, int] = {}

    # --- what there is -------------------------------------------------------------------------------
    def announce(self) -> list[dict[str, Any]]:
        """What this node tells others in its status."""
        return [
            {
                "name": m.name,
                "manifest": m.content_id,
                "complete": m.is_complete,
                "held": self._held(m.content_id),
                **m.manifest.summary(),
                "chat_template": None,
            }
            for m in self.store.models()
        ]

    def _held(self, content_id: ContentId) -> dict[str, Any]:
        """Whole layers on this disk; of a scattered model the first ranges are enough to plan with."""
        held = self.store.holdings(content_id)
        return {"layers": [list(r) for r in held.layers[: limits.HELD_RANGES_MAX]], "ends": held.ends}

    def known(self) -> list[KnownModel]:
        found: dict[ContentId, KnownModel] = {}
        for model in sorted(self.store.models(), key=lambda m: (m.name != DEMO_NAME, m.name)):
            if (same := found.get(model.content_id)) is not None:
                found[model.content_id] = replace(same, aliases=(*same.aliases, model.name))
                continue
            found[model.content_id] = KnownModel(
                model.name, model.content_id, model.manifest.summary(), True, model.is_complete
            )
        for link in self._live():
            assert link.status is not None
            for entry in link.status.models:
                key = ContentId(str(entry.get("manifest", "")))
                summary = {
                    k: v for k, v in entry.items() if k not in ("name", "manifest", "complete", "held")
                }
                name = str(entry.get("name", ""))[:128]
                mine = found.get(key) or KnownModel(name, key, summary, False, False)
                is_theirs = not mine.is_complete_here  # who has all of a model calls it what its owner does
                if is_theirs and name not in mine.names and len(mine.names) < limits.MODEL_NAMES_MAX:
                    mine = replace(mine, aliases=(*mine.aliases, name)).as_called(DEMO_NAME)
                is_new = bool(entry.get("complete")) and link.peer_id not in mine.holders
                found[key] = replace(mine, holders=(*mine.holders, link.peer_id)) if is_new else mine
        return sorted(found.values(), key=lambda m: (not m.is_complete_here, m.name != DEMO_NAME, m.name))

    def holds(self, content_id: str) -> bool:
        """Whether at least its manifest is on this disk."""
        return any(model.content_id == content_id for model in self.store.models())

    def is_known(self, name: str) -> bool:
        """Whether this mesh has a model of this name or content id."""
        return any(model.is_called(name) for model in self.known())

    def resolve(self, name: str | None) -> KnownModel:
        """By name or content id; None is the operator's default, else the first that is complete here."""
        models = self.known()
        if name is None:
            default = self._default_name()
            models.sort(key=lambda m: (not m.is_called(default), not m.is_complete_here))
            if models:
                return models[0].as_called(default)
            raise ModelUnknown(
                "this mesh has no model yet", hint="add one with: p2pnode join --model FILE.gguf"
            )
        for model in models:
            if model.is_called(name):
                return model.as_called(name)
        raise ModelUnknown(f"no device of this mesh has a model named {name!r}")

    async def resolve_or_add(self, name: str | None) -> KnownModel:
        """As `resolve`; a path to a GGUF file is added to the store first."""
        if name is not None and (name.endswith(".gguf") or "/" in name):
            path = await asyncio.to_thread(_existing_file, name)
            if path is not None:
                await self._check_file(path)
                added = await FileSource(path).whole(self.store)
                self._links.status_changed()
                return self.resolve(added.name)
            if name.endswith(".gguf") and not any(m.is_called(name) for m in self.known()):
                raise BadModelFile(
                    f"there is no file {name}",
                    hint="give the path of a GGUF file, or a name from: p2pnode models",
                )
        return self.resolve(name)

    def holders(self, content_id: ContentId) -> list[Holder]:
        """Reachable devices that say they hold the model; those that hold all of it first."""
        found = {
            (not entry.get("complete"), link.peer_id)
            for link in self._live()
            for entry in (link.status.models if link.status else ())
            if entry.get("manifest") == content_id
        }
        return [Holder(peer, functools.partial(self._open, PeerId(peer))) for _, peer in sorted(found)]

    # --- bringing it here ----------------------------------------------------------------------------
    async def manifest(
        self, content_id: ContentId, *, name: str, extra_holders: Iterable[str] = ()
    ) -> Manifest:
        """From this disk, or from whoever has it; registered under `name`."""
        try:
            return await asyncio.to_thread(self.store.manifest, content_id)
        except ModelUnknown:
            return await self._peers(content_id, extra_holders).manifest(self.store, name)

    def _peers(self, content_id: ContentId, extra_holders: Iterable[str]) -> PeerSource:
        holders = self.holders(content_id)
        known = {holder.peer for holder in holders}
        holders += [
            Holder(p, functools.partial(self._open, PeerId(p))) for p in extra_holders if p not in known
        ]
        return PeerSource(content_id, holders, self._report)

    async def fetch(
        self,
        content_id: ContentId,
        wants: Iterable[Want],
        *,
        vocabulary: bool,
        shards: ContentId | None = None,
        extra_holders: Iterable[str] = (),
        on_progress: FetchProgress | None = None,
    ) -> FetchResult:
        """Make sure that these bytes are on this disk, verified; spans alone where a head named the shard table."""
        manifest = await asyncio.to_thread(self.store.manifest, content_id)
        source = self._peers(content_id, extra_holders)
        try:
            result = await source.part(
                self.store,
                manifest,
                list(wants),
                vocabulary=vocabulary,
                shards=shards,
                progress=on_progress,
            )
        except ModelIncomplete as error:
            if (lost := self.store.lost_file(content_id)) is None:
                raise
            raise ModelIncomplete(
                f"{lost} was changed or removed since it was added here, and {error.message}",
                hint="put the file back, or add it where it is now with --model",
                **error.details,
            ) from error
        self.bytes_fetched[content_id] = self.bytes_fetched.get(content_id, 0) + result.bytes_on_wire
        return result

    async def shard_table(self, content_id: ContentId) -> ContentId | None:
        """What a head names in the orders of a tensor group, computed from its own disk; None without all the bytes."""
        try:
            table = await asyncio.to_thread(self.store.shards.own, content_id)
        except (DataDirError, DiskFull):
            return None  # no reason to answer nothing: ranks fetch whole chunks
        return table.content_id if table is not None else None

    async def strips(
        self, content_id: ContentId, shards: ContentId | None, wants: Iterable[Want]
    ) -> dict[str, Strip]:
        """Where the spans of tensors lie that are not here whole."""
        if shards is None:
            return {}
        return await asyncio.to_thread(self.store.shards.strips, content_id, shards, list(wants))

    async def index(self, content_id: ContentId, *, vocabulary: bool) -> tuple[ModelIndex, list[Path]]:
        """The tensor index over this disk's files; `vocabulary` once the full header is here."""
        paths = list(self.store.paths(content_id))
        if not vocabulary and content_id in self._indexes:
            return self._indexes[content_id], paths
        index, _ = await asyncio.to_thread(open_model, paths[0])
        slim = self._indexes.setdefault(content_id, index.without_vocabulary())
        if not vocabulary:
            return slim, paths
        if content_id not in self._texts:
            self._texts[content_id] = await asyncio.to_thread(_token_texts, index)
        return index, paths

    def metadata(self, model: KnownModel) -> dict[str, Any]:
        """What faces need of a model's header; token texts only where the vocabulary is on this disk."""
        key = model.content_id
        if key not in self._metadata:
            found = {**model.summary, "bos_token": "", "eos_token": "", "add_bos": False}
            if model.is_local:
                found.update(self.store.get(key).manifest.summary())
                if key not in self._texts and model.is_complete_here:
                    index, _ = open_model(self.store.paths(key)[0])
                    self._texts[key] = _token_texts(index)
                if key in self._texts:
                    found.update(self._texts[key])
                    self._metadata[key] = found
            return found
        return self._metadata[key]

    async def whole_metadata(self, model: KnownModel) -> dict[str, Any]:
        """`metadata`, with the chat template that devices leave out where they announce a model.

        A manifest comes soon after an announcement, and a chat may come sooner: it would be written in a format that
        was guessed.
        """
        if not model.is_local:
            await self.manifest(model.content_id, name=model.name)
            model = replace(model, is_local=True)
        return self.metadata(model)

    def model_id(self, content_id: ContentId) -> bytes:
        return cid.to_digest(content_id)

    def _live(self) -> list[Link]:
        return [link for link in self._links.links.values() if link.is_up and link.status is not None]

    async def _open(self, peer_id: PeerId) -> Any:
        link = self._links.links.get(peer_id)
        if link is None or link.connection is None:
            raise ModelUnknown(f"{peer_id[-6:]} is not reachable now")
        return await link.connection.open_stream(BLOB)


def _token_texts(index: ModelIndex) -> dict[str, Any]:
    entries = index.metadata
    tokens = entries.get("tokenizer.ggml.tokens")

    def text(key: str) -> str:
        entry = entries.get(f"tokenizer.ggml.{key}")
        number = entry.value() if entry is not None else None
        return tokens.text_at(number) if tokens is not None and isinstance(number, int) else ""

    add = entries.get("tokenizer.ggml.add_bos_token")
    return {
        "bos_token": text("bos_token_id"),
        "eos_token": text("eos_token_id"),
        "add_bos": bool(add.value()) if add is not None else False,
    }


def _existing_file(name: str) -> Path | None:
    path = Path(name).expanduser()
    return path if path.is_file() else None
