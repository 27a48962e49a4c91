"""Where an external server listens: read from what a person wrote, shown without the key. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from p2pnode.errors import ConfigError

KNOWN_PORTS = (8080, 11_434, 1234, 8000)
"""Of llama-server, Ollama, LM Studio and vLLM."""


@dataclass(frozen=True, slots=True)
class BackendAddress:
    """Where a server listens; `key` is what it wants to see in Authorization."""

    host: str
    port: int
    path: str = ""
    """Before /v1, for servers behind a prefix."""
    secure: bool = False
    key: str = ""

    @property
    def text(self) -> str:
        """Without the key: for faces and the record."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{self.path}"

    @property
    def is_loopback(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def address_of(url: str) -> BackendAddress:
    """`http://HOST:PORT`, with `/v1` or without, with `:KEY@` before the host when it wants one."""
    hint = "write for example http://127.0.0.1:8080"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError:
        raise ConfigError(f"{url!r} is not an address of a server", hint=hint) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"{url!r} is not an address of a server", hint=hint)
    secure = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/v1")
    key = unquote(parts.password or parts.username or "")
    if any(ord(character) < 33 or ord(character) > 126 for character in path + key):
        raise ConfigError("an address of a server with characters that no request can carry", hint=hint)
    return BackendAddress(parts.hostname, port or (443 if secure else 80), path, secure, key)
