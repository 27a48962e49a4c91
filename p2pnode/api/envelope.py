"""One error envelope for every answer, OpenAI's shape: also in the middle of a stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from quart import Response
from werkzeug.exceptions import HTTPException

from p2pnode.errors import (
    BodyTimeout,
    BodyTooLarge,
    Cancelled,
    InsufficientCredit,
    MethodNotAllowed,
    ModelLoading,
    NotFound,
    P2PNodeError,
    RateLimited,
    RequestError,
)

log = logging.getLogger("p2pnode.api")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}
_RETRY_AFTER_DEFAULT_S = 2


class InternalError(P2PNodeError):
    """A bug of ours: the words say so, the details stay in the node's own log."""

    code, http_status = "internal_error", 500
    hint_default = "this is a bug in p2pnode; the node's log has the details"


def condition_of(error: BaseException) -> P2PNodeError:
    """Any exception as a condition; only bugs become `InternalError`."""
    if isinstance(error, P2PNodeError):
        return error
    if isinstance(error, HTTPException):
        if error.code == 404:
            return NotFound("there is nothing at this address", hint="GET /openapi.json lists every route")
        if error.code == 405:
            return MethodNotAllowed("this address does not take this method", hint="see GET /openapi.json")
        if error.code == 408:
            return BodyTimeout("the request's body did not arrive in time")
        if error.code == 413:
            return BodyTooLarge("the request's body is too large")
        return RequestError(error.description or "the request cannot be understood")
    log.error("unexpected error", exc_info=error)
    return InternalError("something went wrong inside the node")


def error_type(condition: P2PNodeError) -> str:
    if isinstance(condition, InsufficientCredit):
        return "insufficient_quota"
    status = condition.http_status
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


def envelope(condition: P2PNodeError) -> dict[str, Any]:
    """`{"error": {message, type, param, code, hint, details}}`."""
    code = "credit_balance_exhausted" if isinstance(condition, InsufficientCredit) else condition.code
    return {
        "error": {
            "message": condition.message,
            "type": error_type(condition),
            "param": condition.details.get("param"),
            "code": code,
            "hint": condition.hint,
            "details": {key: value for key, value in condition.details.items() if key != "param"},
        }
    }


def retry_headers(condition: P2PNodeError) -> dict[str, str]:
    """What OpenAI's clients read to decide whether and when to try again."""
    headers: dict[str, str] = {}
    if isinstance(condition, InsufficientCredit) or not condition.retryable:
        headers["x-should-retry"] = "false"
    elif condition.http_status in (429, 503):
        wait_s = condition.details.get("eta_s") if isinstance(condition, ModelLoading) else None
        wait_s = condition.details.get("retry_after_s", wait_s)
        headers["Retry-After"] = str(max(1, round(wait_s or _RETRY_AFTER_DEFAULT_S)))
        headers["x-should-retry"] = "true"
    return headers


def json_bytes(document: Any) -> bytes:
    return msgspec.json.encode(document, enc_hook=_encode_other)


def _encode_other(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "item"):
        return value.item()
    return str(value)


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    response = Response(json_bytes(document), status=status, content_type="application/json")
    response.headers.extend(dict(headers or {}))
    return response


def error_response(
    error: BaseException, form: Callable[[P2PNodeError], dict[str, Any]] = envelope
) -> Response:
    """The condition with its status; `form` writes it as the clients of a route are used to."""
    condition = condition_of(error)
    status = condition.http_status
    if isinstance(condition, RateLimited | Cancelled):
        log.debug("%s: %s", condition.code, condition.message)
    return json_response(form(condition), status, retry_headers(condition))
