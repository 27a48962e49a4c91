"""API keys: only their SHA-256 is kept, each has a scope; the file is readable by its owner alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from p2pnode.durable import replace_file
from p2pnode.errors import ConfigError, DataDirError, NotFound, RequestError

Scope = Literal["use", "admin"]
KEY_PREFIX = "p2pk-"
_LABEL_CHARS_MAX = 64
_KEYS_MAX = 1000


@dataclass(frozen=True, slots=True)
class ApiKey:
    key_id: str
    """First characters of the hash: names the key and its billing account without revealing it."""
    digest: str
    """SHA-256 of the whole key in hex; keys are 256 random bits, so no slow hash is needed."""
    label: str
    scope: Scope
    created_ms: int
    revoked_ms: int | None = None

    def public(self) -> dict[str, Any]:
        view = asdict(self)
        del view["digest"]
        return view


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class KeyStore(Protocol):
    """Where keys are looked up at each request."""

    def find(self, secret: str) -> ApiKey | None: ...
    def list(self) -> list[ApiKey]: ...
    def create(self, label: str, scope: Scope, now_ms: int) -> tuple[ApiKey, str]: ...
    def revoke(self, key_id: str, now_ms: int) -> ApiKey: ...


class MemoryKeys:
    """Keys of one process: tests, and the base of the file store."""

    def __init__(self) -> None:
        self._keys: dict[str, ApiKey] = {}

    def _save(self) -> None:
        """Nothing to keep."""

    def find(self, secret: str) -> ApiKey | None:
        digest = digest_of(secret)
        key = self._keys.get(digest[:12])
        if key is None or key.revoked_ms is not None or not hmac.compare_digest(key.digest, digest):
            return None
        return key

    def list(self) -> list[ApiKey]:
        return sorted(self._keys.values(), key=lambda key: (key.created_ms, key.key_id))

    def create(self, label: str, scope: Scope, now_ms: int) -> tuple[ApiKey, str]:
        """The new key and its secret: the only time it is ever shown."""
        if scope not in ("use", "admin"):
            raise RequestError("a key's scope is `use` or `admin`", param="scope")
        if not label.isprintable() or len(label) > _LABEL_CHARS_MAX:
            raise RequestError(f"a label is at most {_LABEL_CHARS_MAX} printable characters", param="label")
        if len(self._keys) >= _KEYS_MAX:
            raise RequestError(
                f"there are {_KEYS_MAX} keys already", hint="remove the key file's old entries"
            )
        secret = KEY_PREFIX + secrets.token_urlsafe(32)
        digest = digest_of(secret)
        key = ApiKey(digest[:12], digest, label, scope, now_ms)
        self._keys[key.key_id] = key
        self._save()
        return key, secret

    def revoke(self, key_id: str, now_ms: int) -> ApiKey:
        key = self._keys.get(key_id)
        if key is None:
            raise NotFound(f"there is no key {key_id!r}", hint="p2pnode keys list")
        if key.revoked_ms is None:
            key = replace(key, revoked_ms=now_ms)
            self._keys[key_id] = key
            self._save()
        return key


class FileKeys(MemoryKeys):
    """Keys in a JSON file (DATA/api_keys.json), replaced atomically, mode 0600."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
            keys = [ApiKey(**row) for row in rows]
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError) as error:
            hint = "restore it, or remove it and create new keys"
            raise ConfigError(f"cannot read {self._path}: {error}", hint=hint) from error
        self._keys = {key.key_id: key for key in keys}

    def _save(self) -> None:
        document = json.dumps([asdict(key) for key in self.list()], indent=1)
        try:
            replace_file(self._path, document.encode(), mode=0o600)
        except OSError as error:
            raise DataDirError(f"cannot write {self._path}: {error}") from error
