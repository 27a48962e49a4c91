"""Options: four sources, their order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode import limits
from p2pnode.config import describe, load_options, parse_duration_s, parse_host_port, parse_size
from p2pnode.errors import ConfigError


def test_order(tmp_path: Path) -> None:
    """A flag beats the environment, which beats the file, which beats the default."""
    (tmp_path / "config.toml").write_text(
        'api = "127.0.0.1:1"\nname = "file"\nmdns = false\nmemory_max = "6G"\n'
    )
    environ = {"P2PNODE_API": "127.0.0.1:2", "P2PNODE_NAME": "environment"}
    resolved = load_options({"data": tmp_path, "api": "127.0.0.1:3"}, environ)
    options = resolved.options
    assert (options.api, options.name, options.mdns, options.threads) == (
        "127.0.0.1:3",
        "environment",
        False,
        None,
    )
    assert options.memory_max_bytes == 6 * 1024**3
    assert resolved.origins["api"] == "flag --api"
    assert resolved.origins["name"] == "environment P2PNODE_NAME"
    assert resolved.origins["mdns"].startswith("file ")
    assert resolved.origins["threads"] == "default"


def test_environment(tmp_path: Path) -> None:
    """Every option has a variable; lists are separated by commas."""
    environ = {
        "P2PNODE_DATA": str(tmp_path), "P2PNODE_LISTEN": "/ip4/0.0.0.0/udp/1/quic-v1, /ip6/::/udp/1/quic-v1",
        "P2PNODE_PEER": "/ip4/10.0.0.1/udp/1/quic-v1/p2p/x", "P2PNODE_MODEL": "a.gguf", "P2PNODE_MEMORY_MAX": "512M",
        "P2PNODE_MDNS": "off", "P2PNODE_CONSOLE": "yes", "P2PNODE_THREADS": "2", "P2PNODE_INVITE_FILE": "~/ticket",
    }  # fmt: skip
    options = load_options({}, environ).options
    assert options.data == tmp_path
    assert len(options.listen) == 2
    assert options.models == (Path("a.gguf"),)
    assert (options.mdns, options.console, options.threads) == (False, True, 2)
    assert options.memory_max_bytes == 512 * 1024**2
    assert options.invite_file == Path("~/ticket").expanduser()


def test_as_many_external_servers_as_can_be_asked(tmp_path: Path) -> None:
    """Every one of them is asked for its models again and again."""
    named = [f"http://127.0.0.1:{number}" for number in range(1, limits.BACKENDS_MAX + 2)]
    assert len(load_options({"data": tmp_path, "backends": named[1:]}, {}).options.backends) == 16
    with pytest.raises(ConfigError, match="at most 16 are possible, got 17"):
        load_options({"data": tmp_path, "backends": named}, {})


def test_default_folder(tmp_path: Path) -> None:
    """Without a word the XDG data folder is used."""
    assert load_options({}, {"XDG_DATA_HOME": str(tmp_path)}).options.data == tmp_path / "p2pnode"
    assert load_options({}, {}).options.data.parts[-3:] == (".local", "share", "p2pnode")


@pytest.mark.parametrize(
    "text",
    [
        "nonsense = 1",
        "[",
        "threads = 0",
        "threads = true",
        'mdns = "maybe"',
        "listen = 5",
        "name = 5",
        "api = ':x:'",
    ],
)
def test_bad_file(tmp_path: Path, text: str) -> None:
    """A wrong file is refused with its path, also when a flag would win."""
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError):
        load_options({"data": tmp_path}, {})


def test_missing_file(tmp_path: Path) -> None:
    """A config file that was asked for must exist."""
    with pytest.raises(ConfigError, match="there is no config file"):
        load_options({"data": tmp_path}, {"P2PNODE_CONFIG": str(tmp_path / "none.toml")})


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("2k", 2048), ("1.5G", 1_610_612_736), ("3 MiB", 3 << 20)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1X", "1e9"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


def test_durations() -> None:
    assert [parse_duration_s(text) for text in ("90", "15m", "1h", "7d", "1w")] == [
        90,
        900,
        3600,
        604_800,
        604_800,
    ]
    for text in ("", "0", "soon", "1y"):
        with pytest.raises(ConfigError):
            parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9480", ("127.0.0.1", 9480)),
        ("http://[::1]:80/", ("::1", 80)),
        (":9480", ("127.0.0.1", 9480)),
        ("studio", ("studio", 9480)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_host_port(text) == expected


@pytest.mark.parametrize("text", ["a:b", "a:99999", "a b:1", "a/b:1"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_host_port(text)


def test_ticket_is_hidden(tmp_path: Path) -> None:
    """`config show` never prints the secret."""
    rows = {
        row["name"]: row
        for row in describe(load_options({"data": tmp_path, "ticket": "p2p1-SECRET"}, {}).options)
    }
    assert rows["ticket"]["value"] == "(hidden)"
