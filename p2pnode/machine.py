"""Which machine this is, and whether a data folder belongs to it: a copied folder is one identity on two devices.

`machine.json` beside the key holds a keyed hash of the operating system's machine id, which tells nothing to who reads
it, and the host name for people. Where the system has no such id (many containers) nothing is bound or refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import platform
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from p2pnode.durable import replace_file
from p2pnode.errors import DataDirError, DuplicateIdentity
from p2pnode.identity import Identity

MACHINE_FILE = "machine.json"
_PURPOSE = "machine binding"
_LINUX_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_ID = re.compile(r"[0-9a-f]{32}")
_HOST_CHARACTERS_MAX = 64


def host_name() -> str:
    return socket.gethostname()[:_HOST_CHARACTERS_MAX] or "unnamed host"


def now_ms() -> int:
    """The machine's clock."""
    return time.time_ns() // 1_000_000


def machine_id() -> str | None:
    """What the operating system calls this installation; None when it has no name for it."""
    if platform.system() == "Darwin":
        return _mac_id()
    for path in _LINUX_FILES:
        try:
            text = path.read_text(encoding="ascii").strip().lower()
        except (OSError, UnicodeDecodeError):
            continue
        # Images of containers have an empty file, or the word "uninitialized".
        if _ID.fullmatch(text):
            return text
    return None


def _mac_id() -> str | None:
    command = ["/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'"IOPlatformUUID" = "([0-9A-Fa-f-]{36})"', said)
    return found[1].replace("-", "").lower() if found else None


def bind_to_machine(
    data: Path, identity: Identity, *, moved: bool = False, find_id: Callable[[], str | None] = machine_id
) -> None:
    """Bind the folder to this machine at its first start here; DuplicateIdentity when it belongs to another.

    `moved` says that the other device is gone, so the folder is bound anew.
    """
    found = find_id()
    if found is None:
        return
    own = hmac.new(identity.derive_secret(_PURPOSE), found.encode(), hashlib.sha256).hexdigest()
    path = data / MACHINE_FILE
    bound, host = _read(path)
    if bound and bound != own and not moved:
        raise DuplicateIdentity(
            f"the data folder {data} belongs to {host}: it was copied or moved to {host_name()}",
            hint=f"if it was moved and nothing runs it on {host} any more, start once with --moved; "
            "for a device of its own take another folder with --data, and a ticket",
            hosts=[host, host_name()],
            peer=identity.peer_id,
        )
    if bound != own or host != host_name():
        _write(path, own)


def _read(path: Path) -> tuple[str, str]:
    """-> (keyed hash, host); empty when the folder is not bound, or the file is not ours."""
    try:
        document = json.loads(path.read_bytes()[:4096])
    except (OSError, ValueError, RecursionError):
        return "", ""
    if not isinstance(document, dict):
        return "", ""
    bound, host = document.get("machine"), document.get("host")
    return (
        (bound, host[:_HOST_CHARACTERS_MAX]) if isinstance(bound, str) and isinstance(host, str) else ("", "")
    )


def _write(path: Path, bound: str) -> None:
    document = json.dumps({"machine": bound, "host": host_name()}) + "\n"
    try:
        replace_file(path, document.encode())
    except OSError as error:
        raise DataDirError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="move it away, it is written again; or make the folder writable",
            path=str(path),
        ) from error
