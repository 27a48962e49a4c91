"""Options of a node: flags > environment P2PNODE_* > TOML file > defaults, each value with its origin."""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from p2pnode import limits
from p2pnode.errors import ConfigError
from p2pnode.server_address import BackendAddress, address_of

API_DEFAULT = "127.0.0.1:9480"
LISTEN_DEFAULT = "/ip4/0.0.0.0/udp/9481/quic-v1"
CONFIG_NAME = "config.toml"
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b?)\s*$", re.IGNORECASE)
_DURATION = re.compile(r"^\s*(\d+)\s*([smhdw]?)\s*$", re.IGNORECASE)
_DURATION_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """Everything `p2pnode join` can be told."""

    data: Path
    """Folder of this node: identity, log, models, node.json."""
    ticket: str | None = None
    """Invite of the mesh to join; None: found or rejoin."""
    invite_file: Path | None = None
    """File that holds the ticket, so that it is not seen in the process list; `-` is stdin."""
    ask: bool = False
    """Whether a fresh device without a ticket asks a mesh to be let in, instead of making one."""
    moved: bool = False
    """Whether the data folder was moved here from another machine, which no longer runs it."""
    name: str = ""
    """How people call this device."""
    listen: tuple[str, ...] = (LISTEN_DEFAULT,)
    """QUIC multiaddresses to listen on."""
    announce: tuple[str, ...] = ()
    """Multiaddresses others are told instead of the bound ones, e.g. of a forwarded port."""
    api: str = API_DEFAULT
    """HOST:PORT of the HTTP API and panel; port 0 takes a free one."""
    peers: tuple[str, ...] = ()
    """Multiaddresses (with /p2p/ID) to dial at start."""
    models: tuple[Path, ...] = ()
    """GGUF files to add to the store at start."""
    backends: tuple[BackendAddress, ...] = ()
    """External OpenAI-compatible servers whose models this device serves: http://[:KEY@]HOST:PORT."""
    threads: int | None = None
    """Compute threads; None: physical cores."""
    memory_max_bytes: int | None = None
    """Most memory engines may take: idle models make room for others; None: what is free, and nothing is unloaded."""
    mdns: bool = True
    """Whether to announce and look for members on the local network."""
    port_mapping: bool = False
    """Whether to ask the home router (PCP, NAT-PMP or UPnP) to forward this node's UDP port."""
    metered: bool = False
    """Whether traffic costs money here: others give this device no layers that it would have to fetch."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names the API answers to besides loopback and its own address."""
    traces: bool = False
    """Whether traces and GenAI metrics go to the OpenTelemetry collector that the OTEL_* variables name."""
    console: bool = False
    """Whether POST /shell/exec exists at all."""
    mcp: Path | None = None
    """JSON file that names the tool servers (MCP) agents may use, as desktop clients write it."""
    oidc_issuer: str = ""
    """OpenID issuer whose tokens the API takes, e.g. https://id.example.org; empty: none."""
    oidc_audience: str = "p2pnode"
    """What such a token's `aud` must name."""
    as_json: bool = False
    """Whether the start is announced as one JSON document instead of text."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where each value came from."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """Options and, for each of their names, where the value came from."""

    options: JoinOptions
    origins: Mapping[str, str]


def parse_size(text: str) -> int:
    """Bytes of `8G`, `512MiB`, `1000000`; k, M, G and T are powers of 1024 as memory sizes are."""
    match = _SIZE.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a size", hint="write for example 512M or 6G")
    power = " kmgt".index(match[2].lower() or " ")
    size = int(float(match[1]) * 1024**power)
    if size <= 0:
        raise ConfigError("a size must be more than 0", hint="write for example 512M or 6G")
    return size


def parse_duration_s(text: str) -> int:
    """Seconds of `90`, `15m`, `1h`, `7d`."""
    match = _DURATION.match(text)
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"{text!r} is not a duration", hint="write for example 15m, 1h or 7d")
    return int(match[1]) * _DURATION_UNITS_S[match[2].lower()]


def parse_host_port(text: str) -> tuple[str, int]:
    """`HOST:PORT`, IPv6 in brackets; a scheme in front is tolerated."""
    bare = text.strip().removeprefix("http://").rstrip("/")
    host, separator, port = bare.rpartition(":")
    if not separator:
        host, port = bare, "9480"
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or int(port) > 65_535 or " " in host or "/" in host:
        raise ConfigError(f"{text!r} is not HOST:PORT", hint=f"write for example {API_DEFAULT}")
    return host, int(port)


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """`$P2PNODE_DATA`, else the XDG data folder of the user."""
    if environ.get("P2PNODE_DATA"):
        return Path(environ["P2PNODE_DATA"]).expanduser()
    base = environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "p2pnode"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"expected text, got {value!r}")
    return value


def _path(value: Any) -> Path:
    return Path(_text(str(value) if isinstance(value, Path) else value)).expanduser()


def _backend(value: Any) -> BackendAddress:
    return address_of(_text(value))


def _many(convert: Callable[[Any], Any], most: int | None = None) -> Callable[[Any], tuple[Any, ...]]:
    def convert_all(value: Any) -> tuple[Any, ...]:
        parts = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ConfigError(f"expected a list, got {value!r}")
        if most is not None and len(parts) > most:
            raise ConfigError(f"at most {most} are possible, got {len(parts)}")
        return tuple(convert(part.strip() if isinstance(part, str) else part) for part in parts)

    return convert_all


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False}
    if isinstance(value, str) and value.lower() in {**words, "off": False}:
        return words.get(value.lower(), False)
    raise ConfigError(f"expected true or false, got {value!r}")


def _positive(value: Any) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"expected a whole number above 0, got {value!r}")
    return value


def _size(value: Any) -> int:
    return _positive(value) if isinstance(value, int) else parse_size(_text(value))


def _api(value: Any) -> str:
    host, port = parse_host_port(_text(value))
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "ticket": _text,
    "invite_file": _path,
    "ask": _boolean,
    "moved": _boolean,
    "name": _text,
    "listen": _many(_text),
    "announce": _many(_text),
    "api": _api,
    "peers": _many(_text),
    "models": _many(_path),
    "backends": _many(_backend, limits.BACKENDS_MAX),
    "threads": _positive,
    "memory_max_bytes": _size,
    "mdns": _boolean,
    "port_mapping": _boolean,
    "metered": _boolean,
    "allowed_hosts": _many(_text),
    "traces": _boolean,
    "console": _boolean,
    "mcp": _path,
    "oidc_issuer": _text,
    "oidc_audience": _text,
}
ENVIRONMENT: Mapping[str, str] = {
    "ticket": "P2PNODE_TICKET",
    "peers": "P2PNODE_PEER",
    "models": "P2PNODE_MODEL",
    "backends": "P2PNODE_BACKEND",
    "memory_max_bytes": "P2PNODE_MEMORY_MAX",
}
"""Names that are not `P2PNODE_` and the option in capitals."""

FILE_KEYS: Mapping[str, str] = {"memory_max_bytes": "memory_max"}


def environment_name(option: str) -> str:
    return ENVIRONMENT.get(option, f"P2PNODE_{option.upper()}")


def _read_toml(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise ConfigError(f"there is no config file {path}", hint="check --config") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", hint="it must be TOML text in UTF-8") from error
    known = {FILE_KEYS.get(name, name) for name in CONVERTERS}
    for key in document:
        if key not in known:
            hint = f"known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"unknown key {key!r} in {path}", hint=hint)
    return document


def load_options(
    flags: Mapping[str, Any], environ: Mapping[str, str] | None = None, config_file: Path | None = None
) -> Resolved:
    """Join the four sources; a flag counts as given when it is not None, () or missing."""
    environ = os.environ if environ is None else environ
    origins: dict[str, str] = {}
    values: dict[str, Any] = {}
    data_flag = flags.get("data")
    values["data"] = _path(data_flag) if data_flag else default_data_dir(environ)
    origins["data"] = (
        "flag --data"
        if data_flag
        else "environment P2PNODE_DATA"
        if environ.get("P2PNODE_DATA")
        else "default"
    )
    chosen = config_file or (Path(environ["P2PNODE_CONFIG"]) if environ.get("P2PNODE_CONFIG") else None)
    path = chosen or values["data"] / CONFIG_NAME
    document = _read_toml(path, required=chosen is not None)
    for name, convert in CONVERTERS.items():
        variable, key = environment_name(name), FILE_KEYS.get(name, name)
        flag = flags.get(name)
        if flag is not None and flag != ():
            source, raw = f"flag --{_flag_name(name)}", flag
        elif environ.get(variable):
            source, raw = f"environment {variable}", environ[variable]
        elif key in document:
            source, raw = f"file {path}", document[key]
        else:
            origins[name] = "default"
            continue
        try:
            values[name] = convert(raw)
        except ConfigError as error:
            raise ConfigError(f"{name} from {source}: {error.message}", hint=error.hint) from error
        origins[name] = source
    values["origins"] = origins
    values["as_json"] = bool(flags.get("as_json"))
    if not values.get("name"):
        values["name"] = socket.gethostname().split(".")[0] or "device"
        origins["name"] = "default (host name)"
    return Resolved(JoinOptions(**values), origins)


def _flag_name(option: str) -> str:
    special = {"peers": "peer", "models": "model", "backends": "backend", "mdns": "no-mdns"}
    special["memory_max_bytes"] = "memory-max"
    return special.get(option, option.replace("_", "-"))


def describe(options: JoinOptions) -> list[dict[str, Any]]:
    """Rows of `p2pnode config show --origin`; the ticket is never shown."""
    rows = []
    for option in fields(JoinOptions):
        if option.name in ("origins", "as_json"):
            continue
        value = getattr(options, option.name)
        if isinstance(value, tuple):
            value = [item.text if isinstance(item, BackendAddress) else str(item) for item in value]
        elif isinstance(value, Path):
            value = str(value)
        if option.name == "ticket" and value is not None:
            value = "(hidden)"
        origin = options.origins.get(option.name, "default")
        rows.append({"name": option.name, "value": value, "origin": origin})
    return rows
