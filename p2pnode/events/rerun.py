"""What the record and its secrets say of a request, so that it can be asked again and compared."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from typing import Any

from p2pnode.errors import NotFound, RequestError
from p2pnode.events.reader import LogReader
from p2pnode.events.secret import commitment_of
from p2pnode.events.tables import SecretRow
from p2pnode.events.types import RequestAccepted, RequestFinished

_KEEP_HINT = "with the setting keep_texts=true prompts are kept; or give it again with --prompt-file"


@dataclass(frozen=True, slots=True)
class Rerun:
    """A finished request as it was asked, and how to know its answer again."""

    request_id: str
    model: str
    prompt: str | list[int]
    parameters: dict[str, Any]
    answer: SecretRow

    def compare(self, text: str) -> dict[str, Any]:
        """`same`, or where the new answer leaves the old one, if that was kept."""
        same = hmac.compare_digest(commitment_of(self.answer.salt, text.encode()), self.answer.commitment)
        kept = None if self.answer.text is None else self.answer.text.decode()
        return {
            "request_id": self.request_id,
            "same": same,
            "diverged_at": None if same or kept is None else _divergence(kept, text),
            "text": text,
        }


def rerun_of(reader: LogReader, request_id: str, prompt: str | None = None) -> Rerun:
    """Raises NotFound for what was forgotten or never kept, RequestError for what can not be repeated."""
    events = [record.event for record in reader.find(request_id)]
    accepted = next((e for e in events if isinstance(e, RequestAccepted)), None)
    finished = next((e for e in events if isinstance(e, RequestFinished)), None)
    if accepted is None or finished is None:
        raise NotFound(f"the record has no finished request {request_id!r}")
    answer = _secret(reader, finished.answer_commitment, "answer")
    row = _secret(reader, accepted.prompt_commitment, "prompt")
    text = row.text if prompt is None else prompt.encode()
    if text is None:
        raise NotFound(f"the prompt of {request_id} was not kept", hint=_KEEP_HINT)
    if commitment_of(row.salt, text) != accepted.prompt_commitment:
        raise RequestError(f"this is not the prompt of {request_id}: its commitment differs")
    if accepted.parameters_commitment is None:
        raise NotFound(f"how {request_id} was sampled was not recorded")
    kept = _secret(reader, accepted.parameters_commitment, "parameters").text
    parameters: dict[str, Any] = json.loads(kept or b"{}")
    if parameters.get("temperature") != 0 and parameters.get("seed") is None:
        raise RequestError(
            f"{request_id} was neither greedy nor seeded: its answer was chance",
            hint="only requests with temperature 0 or a seed can be repeated",
        )
    return Rerun(request_id, accepted.model, _prompt(text.decode()), parameters, answer)


def _secret(reader: LogReader, commitment: bytes, what: str) -> SecretRow:
    row = reader.secret(commitment)
    if row is None:
        raise NotFound(f"the {what} was forgotten: its salt is gone")
    return row


def _prompt(text: str) -> str | list[int]:
    """Token ids were committed to as a JSON list."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    is_tokens = isinstance(value, list) and all(type(token) is int for token in value)
    return value if is_tokens else text


def _divergence(old: str, new: str) -> int:
    """Index of the first character that differs."""
    return next(
        (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
    )
