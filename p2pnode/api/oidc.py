"""Optional sign-in by JWT from an OpenID provider: RS256 or ES256, keys cached, issuer, audience and times checked."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from p2pnode.api.keys import Scope
from p2pnode.errors import ConfigError, Unauthorized
from p2pnode.limits import OIDC_DOCUMENT_BYTES_MAX, OIDC_KEYS_CACHE_S, OIDC_LEEWAY_S, OIDC_TIMEOUT_S

ALGORITHMS = ["RS256", "ES256"]
"""Nothing symmetric and not `none`: a public key must never be usable as a secret."""


@dataclass(frozen=True, slots=True)
class OidcOptions:
    issuer: str
    audience: str
    admin_claim: str = "p2pnode_admin"
    """A true boolean claim of this name makes the caller an admin."""


def fetch_json(url: str) -> Mapping[str, Any]:
    """A small JSON document over https (or from loopback); Unauthorized when it cannot be had."""
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"{url} is not https", hint="an issuer's keys must come over https")
    try:
        with urllib.request.urlopen(url, timeout=OIDC_TIMEOUT_S) as response:  # noqa: S310 # scheme checked above
            raw = response.read(OIDC_DOCUMENT_BYTES_MAX + 1)
        document = json.loads(raw) if len(raw) <= OIDC_DOCUMENT_BYTES_MAX else None
    except (OSError, ValueError) as error:
        raise Unauthorized(f"the sign-in keys cannot be fetched: {error}", hint="try again") from None
    if not isinstance(document, dict):
        raise Unauthorized("the sign-in service answered nonsense")
    return document


def oidc_verifier(issuer: str, audience: str) -> OidcVerifier | None:
    """The verifier for an issuer; None when none is configured."""
    return OidcVerifier(OidcOptions(issuer, audience)) if issuer else None


@dataclass(slots=True)
class OidcVerifier:
    """`ApiSecurity.verify_jwt`: the account and scope of a token, or None when it is not valid here."""

    options: OidcOptions
    fetch: Callable[[str], Mapping[str, Any]] = fetch_json
    now_s: Callable[[], float] = time.time
    _keys: Any = field(default=None)
    _fetched_s: float = field(default=0.0)

    def __call__(self, token: str) -> tuple[str, Scope] | None:
        from joserfc import jwt
        from joserfc.errors import JoseError

        for attempt in (False, True):
            keys = self._key_set(refresh=attempt)
            try:
                claims = jwt.decode(token, keys, algorithms=ALGORITHMS).claims
                break
            except (JoseError, ValueError):
                # a rotated key is not in the cache yet: fetch once more, not more often than every few seconds
                if attempt or self.now_s() - self._fetched_s < OIDC_TIMEOUT_S:
                    return None
        return self._checked(claims)

    def _checked(self, claims: Mapping[str, Any]) -> tuple[str, Scope] | None:
        audience, now_s = claims.get("aud"), self.now_s()
        audiences = audience if isinstance(audience, list) else [audience]
        expires, begins, subject = claims.get("exp"), claims.get("nbf", 0), claims.get("sub")
        if claims.get("iss") != self.options.issuer or self.options.audience not in audiences:
            return None
        if not isinstance(expires, int | float) or not isinstance(begins, int | float):
            return None
        if not begins - OIDC_LEEWAY_S <= now_s < expires + OIDC_LEEWAY_S:
            return None
        if not isinstance(subject, str) or not subject or len(subject) > 255:
            return None
        scope: Scope = "admin" if claims.get(self.options.admin_claim) is True else "use"
        return f"oidc:{subject}", scope

    def _key_set(self, *, refresh: bool) -> Any:
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        if self._keys is None or refresh or self.now_s() - self._fetched_s > OIDC_KEYS_CACHE_S:
            issuer = self.options.issuer.rstrip("/")
            address = self.fetch(f"{issuer}/.well-known/openid-configuration").get("jwks_uri")
            if not isinstance(address, str):
                raise Unauthorized("the sign-in service names no keys")
            try:
                self._keys = KeySet.import_key_set(dict(self.fetch(address)))
            except (JoseError, ValueError, KeyError, TypeError):
                raise Unauthorized("the sign-in service's keys cannot be read") from None
            self._fetched_s = self.now_s()
        return self._keys
