"""Who may ask: Host allow-list, cross-origin check, keys and scopes, rate limits.

The cross-origin check is the one of Go 1.25's CrossOriginProtection: browsers say where a request comes
from in Sec-Fetch-Site and Origin, other programs send neither. A DNS-rebinding page has a foreign name in
Host, which is why names are on a list while IP literals are not (a page cannot rebind an IP address).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from werkzeug.datastructures import Headers

from p2pnode.api.keys import KeyStore, MemoryKeys, Scope
from p2pnode.errors import Forbidden, RateLimited, Unauthorized
from p2pnode.limits import API_KEY_REQUESTS_PER_MINUTE

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_BUCKETS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request is from, as far as the API knows."""

    account: str
    """Billing account: `local` or `key:<id>`."""
    scope: Scope
    explicit: bool
    """Whether a credential was shown, rather than loopback trusted."""
    address: str = ""
    """Remote address as the socket saw it."""


@dataclass(slots=True)
class RateLimiter:
    """Token bucket per account: a minute's worth may be used at once."""

    per_minute: int = API_KEY_REQUESTS_PER_MINUTE
    who: str = "this key"
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, account: str, now_s: float) -> None:
        if len(self._buckets) > _BUCKETS_MAX:
            self._buckets.clear()
        tokens, last_s = self._buckets.get(account, (float(self.per_minute), now_s))
        tokens = min(float(self.per_minute), tokens + (now_s - last_s) * self.per_minute / 60.0)
        if tokens < 1.0:
            wait_s = (1.0 - tokens) * 60.0 / self.per_minute
            raise RateLimited(
                f"{self.who} may ask {self.per_minute} times a minute",
                retry_after_s=wait_s,
                hint="wait, then retry",
            )
        self._buckets[account] = (tokens - 1.0, now_s)


@dataclass(slots=True)
class ApiSecurity:
    """Decides about every request; pure apart from the key store it asks."""

    host: str = "127.0.0.1"
    """Address the API listens on."""
    admin_token: str | None = None
    """Secret in node.json that the command line shows."""
    allowed_hosts: frozenset[str] = frozenset()
    keys: KeyStore = field(default_factory=MemoryKeys)
    console: bool = False
    limiter: RateLimiter = field(default_factory=RateLimiter)
    verify_jwt: Callable[[str], tuple[str, Scope] | None] | None = None
    """Optional OIDC verifier: (account, scope) of a bearer token, None if it is not a JWT of ours."""

    @property
    def loopback_only(self) -> bool:
        return is_loopback(self.host)

    def check_host(self, host_header: str) -> None:
        name = host_name(host_header)
        if name in _LOOPBACK_NAMES or name in self.allowed_hosts or name == self.host.lower():
            return
        if not self.loopback_only and _is_ip(name):
            return
        raise Forbidden(
            f"this API does not answer to the host name {name[:100]!r}",
            hint="use the address printed at start, or allow the name with --allow-host",
        )

    def check_origin(self, headers: Headers, *, navigable: bool) -> None:
        """Refuse what another site's page sends; `navigable`: a link from elsewhere may open it."""
        site = headers.get("Sec-Fetch-Site", "")
        if site in ("same-origin", "none"):
            return
        if site:
            if navigable and headers.get("Sec-Fetch-Mode") == "navigate":
                return
        else:
            origin = headers.get("Origin")
            if origin is None or _same_host(origin, headers.get("Host", "")):
                return
        raise Forbidden("pages of other sites may not use this API", hint="open the panel at its own address")

    def authenticate(self, authorization: str, remote: str, now_s: float) -> Caller | None:
        """The caller, None when a credential is needed and none was shown; raises for a wrong one."""
        kind, _, secret = authorization.partition(" ")
        if authorization:
            caller = self._by_secret(secret.strip()) if kind.lower() == "bearer" else None
            if caller is not None:
                if caller.account != "local":
                    self.limiter.take(caller.account, now_s)
                return caller
            if not (self.loopback_only and is_loopback(remote)):
                raise Unauthorized("this API key is not known or was revoked", hint="p2pnode keys create")
        if self.loopback_only and is_loopback(remote):
            # OpenAI's clients always send some key; on loopback a placeholder is as good as none.
            return Caller("local", "admin", explicit=False)
        return None

    def _by_secret(self, secret: str) -> Caller | None:
        if self.admin_token and hmac.compare_digest(secret.encode(), self.admin_token.encode()):
            return Caller("local", "admin", explicit=True)
        key = self.keys.find(secret)
        if key is not None:
            return Caller(f"key:{key.key_id}", key.scope, explicit=True)
        if self.verify_jwt is not None and secret.count(".") == 2:
            claimed = self.verify_jwt(secret)
            if claimed is not None:
                return Caller(claimed[0], claimed[1], explicit=True)
        return None


def require(caller: Caller | None, scope: Scope) -> Caller:
    if caller is None:
        raise Unauthorized(
            "this address needs an API key",
            hint="make one on the node with: p2pnode keys create; send it as Authorization: Bearer KEY",
        )
    if scope == "admin" and caller.scope != "admin":
        raise Forbidden("this needs an admin key", hint="p2pnode keys create --scope admin")
    return caller


def host_name(host_header: str) -> str:
    """Name part of a Host header, lower case, without port and brackets."""
    value = host_header.strip().lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0] if value.count(":") == 1 else value


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same_host(origin: str, host_header: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == host_header.strip().lower()
    except ValueError:
        return False
