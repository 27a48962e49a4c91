"""The state of a terminal chat and its slash commands; it reads no keys and draws nothing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pnode.cli.output import layers_text, units_text
from p2pnode.cli.run import MODES, summary
from p2pnode.endpoint import Endpoint, find_node
from p2pnode.errors import P2PNodeError, RequestError

HELP = """/help                this list
/exit                leave (or Ctrl-D)
/peers               devices of the mesh
/connect HOST:PORT   talk to another node
/clear               forget the conversation
/save FILE           keep the conversation: .json of messages, or .csv of tokens
/load FILE           take it up again
/model [NAME]        show or choose the model
/mode [MODE]         show or choose how it is computed
/system [TEXT]       instruction before the conversation; nothing removes it
/set NAME VALUE      temperature, top_p, top_k, max_tokens, seed
/stop [TEXT]         end answers before this text; nothing removes all
/stats               counts of this chat and of the last answer"""
_SETTINGS: dict[str, Callable[[str], float | int]] = {
    "temperature": float,
    "top_p": float,
    "min_p": float,
    "top_k": int,
    "max_tokens": int,
    "seed": int,
}
_FILE_BYTES_MAX = 16 * 1024 * 1024


@dataclass(slots=True)
class ChatSession:
    node: Endpoint
    model: str | None = None
    mode: str = "auto"
    system: str = ""
    stop: list[str] = field(default_factory=list)
    settings: dict[str, float | int] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    answers: int = 0
    tokens: int = 0
    cost_microunits: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    is_over: bool = False
    """Since /exit."""

    def request(self, text: str) -> dict[str, Any]:
        """The body for the next turn."""
        body: dict[str, Any] = {
            "messages": [*self.messages, {"role": "user", "content": text}],
            "return_progress": True,
            **self.settings,
        }
        if self.model:
            body["model"] = self.model
        if self.mode != "auto":
            body["mode"] = self.mode
        if self.system:
            body["system"] = self.system
        if self.stop:
            body["stop"] = self.stop
        return body

    def ask(self, text: str) -> Iterator[dict[str, Any]]:
        """Events of the answer; what was written counts as said, also when it was stopped half way."""
        pieces: list[str] = []
        try:
            for event in self.node.stream("/infer/stream", self.request(text)):
                if event.get("type") == "text":
                    pieces.append(event["text"])
                elif event.get("type") == "finished":
                    self.last = event
                    self.answers += 1
                    self.tokens += int(event["usage"]["completion_tokens"])
                    self.cost_microunits += int(event.get("cost_microunits") or 0)
                yield event
        finally:
            if pieces:
                self.messages.append({"role": "user", "content": text})
                self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def command(self, line: str) -> str:
        """What a slash command answers; after /exit the session `is_over`."""
        name, _, rest = line[1:].strip().partition(" ")
        action = getattr(self, f"_do_{name}", None)
        if action is None or not name.isalpha():
            return f"there is no /{name}; /help lists what there is"
        try:
            return str(action(rest.strip()))
        except P2PNodeError as error:
            return f"{error.message}{f' ({error.hint})' if error.hint else ''}"

    def _do_help(self, _: str) -> str:
        return HELP

    def _do_exit(self, _: str) -> str:
        self.is_over = True
        return ""

    _do_quit = _do_exit

    def _do_peers(self, _: str) -> str:
        rows = self.node.get("/peers")["peers"]
        return "\n".join(
            f"{row.get('name') or row['peer']}: {'this device' if row.get('self') else row.get('state')}"
            + (f", {row['rtt_ms']:.1f} ms" if row.get("rtt_ms") and not row.get("self") else "")
            for row in rows
        )

    def _do_connect(self, address: str) -> str:
        node = find_node(api=address or None)
        health = node.get("/health")
        self.node = node
        return f"connected to {health.get('name') or health['peer_id']}"

    def _do_clear(self, _: str) -> str:
        self.messages.clear()
        return "the conversation is forgotten"

    def _do_model(self, name: str) -> str:
        if name:
            known = [row["name"] for row in self.node.get("/models")["models"]]
            if name not in known:
                return f"there is no model {name!r}; there are: {', '.join(known)}"
            self.model = name
        return f"model: {self.model or 'default'}"

    def _do_mode(self, name: str) -> str:
        if name and name not in MODES:
            return f"modes are: {', '.join(MODES)}"
        self.mode = name or self.mode
        return f"mode: {self.mode}"

    def _do_system(self, text: str) -> str:
        self.system = text
        return "instruction set" if text else "no instruction"

    def _do_set(self, rest: str) -> str:
        name, _, value = rest.partition(" ")
        if name not in _SETTINGS:
            return f"settings are: {', '.join(_SETTINGS)}"
        try:
            self.settings[name] = _SETTINGS[name](value)
        except ValueError:
            return f"{value!r} is no value for {name}"
        return f"{name} = {self.settings[name]}"

    def _do_stop(self, text: str) -> str:
        self.stop = [*self.stop, text] if text else []
        return f"answers end before: {', '.join(map(repr, self.stop))}" if text else "no stop texts"

    def _do_stats(self, _: str) -> str:
        answers = "1 answer" if self.answers == 1 else f"{self.answers} answers"
        lines = [f"{answers}, {self.tokens} tokens, {units_text(self.cost_microunits)} units"]
        left = [
            row["available_microunits"]
            for row in self.node.get("/billing").get("accounts", [])
            if row["account"] == "local"
        ]
        lines += [f"credit of this node: {units_text(left[0])} units"] if left else []
        if self.last:
            lines.append(f"last: {summary(self.last)}")
            lines += [
                f"  {stage.get('name')}: layers {layers_text(stage.get('layers'))}"
                for stage in self.last["stages"]
            ]
        return "\n".join(lines)

    def _do_save(self, name: str) -> str:
        path = _path(name)
        if path.suffix == ".csv":
            text = self._as_csv()
        else:
            document = {"version": 1, "model": self.model, "system": self.system, "messages": self.messages}
            text = json.dumps(document, ensure_ascii=False, indent=1)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise RequestError(f"cannot write {path}: {error.strerror}") from None
        return f"{len(self.messages)} messages saved in {path}"

    def _do_load(self, name: str) -> str:
        path = _path(name)
        try:
            if path.stat().st_size > _FILE_BYTES_MAX:
                raise RequestError(f"{path} is too large for a conversation")
            text = path.read_text(encoding="utf-8")
            messages = self._from_csv(text) if path.suffix == ".csv" else self._from_json(text)
        except OSError as error:
            raise RequestError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RequestError(f"{path} is no saved conversation") from None
        self.messages = messages
        return f"{len(messages)} messages loaded"

    def _from_json(self, text: str) -> list[dict[str, str]]:
        document = json.loads(text)
        messages = [
            {"role": _role(row["role"]), "content": str(row["content"])} for row in document["messages"]
        ]
        self.system = str(document.get("system") or "")
        return messages

    def _as_csv(self) -> str:
        """One message a line: its role, then its token ids."""
        out = io.StringIO()
        writer = csv.writer(out)
        for message in self.messages:
            body = {"content": message["content"], **({"model": self.model} if self.model else {})}
            writer.writerow([message["role"], *self.node.post("/tokenize", body)["tokens"]])
        return out.getvalue()

    def _from_csv(self, text: str) -> list[dict[str, str]]:
        messages = []
        for row in csv.reader(io.StringIO(text)):
            body = {
                "tokens": [int(cell) for cell in row[1:]],
                **({"model": self.model} if self.model else {}),
            }
            messages.append(
                {"role": _role(row[0]), "content": self.node.post("/detokenize", body)["content"]}
            )
        return messages


def _role(text: object) -> str:
    if text not in ("user", "assistant", "system"):
        raise ValueError(text)
    return str(text)


def _path(name: str) -> Path:
    if not name:
        raise RequestError("say a file: /save chat.json")
    return Path(name).expanduser()
