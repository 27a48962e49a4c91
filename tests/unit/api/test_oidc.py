"""Sign-in by JWT: only fresh tokens of the right issuer for us, signed by its current keys."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from p2pnode.api.oidc import OidcOptions, OidcVerifier, fetch_json
from p2pnode.api.security import ApiSecurity
from p2pnode.errors import ConfigError, Unauthorized

ISSUER = "https://id.example.org"
NOW_S = 1_790_000_000
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})


class Provider:
    """An issuer whose documents are counted."""

    def __init__(self, *keys: Any) -> None:
        self.keys = list(keys)
        self.asked: list[str] = []

    def __call__(self, url: str) -> dict[str, Any]:
        self.asked.append(url)
        if url.endswith("/.well-known/openid-configuration"):
            return {"jwks_uri": f"{ISSUER}/keys"}
        return KeySet(self.keys).as_dict(private=False)


def token(key: Any = RSA, algorithm: str = "RS256", **changes: Any) -> str:
    claims = {"iss": ISSUER, "aud": "p2pnode", "sub": "ada", "exp": NOW_S + 60, **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({"alg": algorithm, "kid": key.kid}, claims, key, algorithms=[algorithm])


def verifier(provider: Provider, clock: list[float] | None = None) -> OidcVerifier:
    times = clock or [float(NOW_S)]
    return OidcVerifier(OidcOptions(ISSUER, "p2pnode"), fetch=provider, now_s=lambda: times[0])


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (EC, "ES256")])
def test_good_token(key: Any, algorithm: str) -> None:
    """Both algorithms; the keys are fetched once."""
    provider = Provider(RSA, EC)
    verify = verifier(provider)
    assert verify(token(key, algorithm)) == ("oidc:ada", "use")
    assert verify(token(key, algorithm, p2pnode_admin=True, aud=["other", "p2pnode"])) == (
        "oidc:ada",
        "admin",
    )
    assert len(provider.asked) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example"},
        {"aud": "other"},
        {"aud": None},
        {"exp": NOW_S - 3600},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": NOW_S + 3600},
        {"sub": ""},
        {"sub": None},
        {"sub": "x" * 300},
    ],
)
def test_wrong_claims(changes: dict[str, Any]) -> None:
    assert verifier(Provider(RSA))(token(**changes)) is None


def test_admin_must_be_true() -> None:
    """A word is no boolean."""
    assert verifier(Provider(RSA))(token(p2pnode_admin="yes")) == ("oidc:ada", "use")


def test_wrong_signatures() -> None:
    """A foreign key, `none`, and a public key used as a secret are all refused."""
    verify = verifier(Provider(RSA))
    assert verify(token(RSAKey.generate_key(2048, {"kid": "rsa"}))) is None
    head, body, _ = token().split(".")
    confused = urlsafe_b64encode(b'{"alg":"HS256","kid":"rsa"}').rstrip(b"=").decode() + "." + body
    digest = hmac.digest(RSA.as_pem(private=False), confused.encode(), "sha256")
    assert verify(f"{confused}.{urlsafe_b64encode(digest).rstrip(b'=').decode()}") is None
    assert verify(f"{head}.{body}.") is None
    assert verify("eyJhbGciOiJub25lIn0." + body + ".") is None
    assert verify("a.b.c") is None


def test_rotated_key() -> None:
    """A key that is new is found by fetching again, but not at every token."""
    provider, clock = Provider(RSA), [float(NOW_S)]
    verify = verifier(provider, clock)
    assert verify(token()) is not None
    provider.keys = [EC]
    assert verify(token(EC, "ES256")) is None
    clock[0] += 30
    assert verify(token(EC, "ES256")) == ("oidc:ada", "use")
    asked = len(provider.asked)
    for _ in range(5):
        verify("a.b.c")
    assert len(provider.asked) == asked


def test_in_security() -> None:
    """The API takes such a token as a key."""
    security = ApiSecurity(host="0.0.0.0", verify_jwt=verifier(Provider(RSA)))
    caller = security.authenticate(f"Bearer {token()}", "10.0.0.9", 0.0)
    assert caller is not None
    assert (caller.account, caller.scope) == ("oidc:ada", "use")
    with pytest.raises(Unauthorized):
        security.authenticate(f"Bearer {token(aud='other')}", "10.0.0.9", 0.0)


def test_bad_provider() -> None:
    """A provider that is not https, is gone, or talks nonsense, lets nobody in."""
    with pytest.raises(ConfigError, match="not https"):
        fetch_json("http://id.example.org/keys")
    with pytest.raises(Unauthorized, match="cannot be fetched"):
        fetch_json("http://127.0.0.1:1/keys")
    for answer in ({}, {"jwks_uri": 5}, {"jwks_uri": "https://id.example.org/keys", "keys": "none"}):
        with pytest.raises(Unauthorized):
            OidcVerifier(OidcOptions(ISSUER, "p2pnode"), fetch=lambda _, answer=answer: answer)("a.b.c")
