"""The HTTP side of traces: a span a POST, begun with the caller's `traceparent` and over with the last byte."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextvars import ContextVar

from p2pnode.tracing import Passed, Span, Tracing, traceparent_of

HEADER = "traceparent"
_CURRENT: ContextVar[HttpSpan | None] = ContextVar("p2pnode_http_span", default=None)


class HttpSpan:
    """Ends when nobody holds it any more: the route, and the stream that it answers with."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._holders = 1

    @property
    def traceparent(self) -> str:
        return self._span.traceparent

    def answered(self, status: int) -> None:
        """The route is done; a stream may go on."""
        self._span.note({"http.response.status_code": status})
        self._let_go(str(status) if status >= 500 else "")

    def _let_go(self, error: str = "") -> None:
        self._holders -= 1
        if not self._holders:
            self._span.end(error)

    async def around(self, body: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in body:
                yield chunk
        finally:
            if isinstance(body, AsyncGenerator):
                await body.aclose()
            self._let_go()

    def held_by(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self._holders += 1
        return self.around(body)


def begin(tracing: Tracing, method: str, route: str, sent: str) -> HttpSpan:
    """For the request that is answered in this context from now on."""
    parent = traceparent_of(sent)
    span: Span = Passed(parent)
    if method == "POST":
        attributes = {"http.request.method": method, "http.route": route}
        span = tracing.begin(f"{method} {route}", parent, attributes, kind="server")
    http = HttpSpan(span)
    _CURRENT.set(http)
    return http


def current() -> str:
    """The traceparent of the request that is answered here; empty for none."""
    http = _CURRENT.get()
    return "" if http is None else http.traceparent


def held(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A stream as the answer: the span of its request ends with it."""
    http = _CURRENT.get()
    return body if http is None or not http.traceparent else http.held_by(body)
