"""Commands against a real server around a fake node: JSON, tables, errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from p2pnode.cli.link_text import link_text
from p2pnode.cli.main import COMMANDS, every_command, run_command
from p2pnode.cli.mesh_commands import peer_state
from p2pnode.cli.output import layers_text, one_line, short, size_text, units_text
from p2pnode.cli.plan_command import measured_text, reason_text, rejection_text
from p2pnode.cli.plan_wish import parse_blocks, parse_caps, parse_pins, read_blocks
from p2pnode.cli.top import layer_bar
from p2pnode.errors import P2PNodeError, RequestError
from tests.kit.api_server import serving
from tests.kit.fake_node import MODEL, PEER, PEER_TWO, FakeNode, link_row


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def data(node: FakeNode, tmp_path: Path) -> Iterator[str]:
    """A data folder whose node.json leads to the fake node."""
    with serving(node) as url:
        (tmp_path / "node.json").write_text(json.dumps({"api": url, "pid": 1, "token": "t"}))
        yield str(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "command",
    [
        ["peers"], ["models"], ["top"], ["ps"], ["ps", "--all"], ["status"], ["balance"], ["topup", "0.25"], ["invite"],
        ["invites"], ["invites", "revoke", "i1"],
        ["quota", "local"], ["balance", "--earnings"],
        ["plan", MODEL, "--mode", "pipeline", "--stages", "2", "--devices", "studio,kitchen", "--why", "--apply"],
        ["plan", "--exclude", "attic", "--blocks", "studio:0-3,kitchen:4-7", "--what-if", "-kitchen", "--anyway"],
        ["plan", "--pin", "studio:0-1", "--max-memory", "kitchen=2G", "--max-rtt", "3"],
        ["run", MODEL, "hello", "--max-tokens", "3", "--temperature", "0", "--seed", "4"], ["keys", "list"],
        ["keys", "create", "--label", "app"], ["pause"], ["resume", "--reason", "back"], ["drain"],
        ["forget", "kitchen"], ["set", "model.default", MODEL], ["rm", MODEL], ["pull", "org/model"],
        ["show", MODEL],
    ],
)  # fmt: skip
def test_json_and_table(capsys: pytest.CaptureFixture[str], data: str, command: list[str]) -> None:
    """--json prints one document and nothing else; without it there is text; both end with 0."""
    code, out, _ = run(capsys, *command, "--data", data, "--json")
    assert code == 0
    assert isinstance(json.loads(out), dict)
    code, out, _ = run(capsys, *command, "--data", data)
    assert code == 0
    assert out.strip()


def test_why_names_what_was_not_chosen(capsys: pytest.CaptureFixture[str], data: str) -> None:
    _, out, _ = run(capsys, "plan", MODEL, "--why", "--data", data)
    assert out.splitlines()[-1] == "  not: whole by attic: needs 9.1 GB, 6.2 free"


def test_a_quota_is_set_shown_and_lifted(
    capsys: pytest.CaptureFixture[str], data: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = node.billing()
    view["accounts"][0]["quota"] = {
        "limit_microunits": 5_000_000, "period_ms": 3_600_000, "used_microunits": 1_500_000,
        "left_microunits": 3_500_000, "forecast_microunits": 6_000_000,
    }  # fmt: skip
    monkeypatch.setattr(node, "billing", lambda: view)
    code, out, _ = run(capsys, "quota", "local", "5", "--per", "hour", "--data", data)
    assert (code, out) == (0, "local may use 5 units in each hour: 1.5 used, 6 at this pace\n")
    assert run(capsys, "quota", "local", "--lift", "--data", data)[0] == 0
    assert [arguments for name, arguments in node.commands if name == "quota"] == [
        {"account": "local", "limit_microunits": 5_000_000, "period_ms": 3_600_000},
        {"account": "local"},
    ]
    view["accounts"][0]["quota"]["period_ms"] = 5_400_000
    assert "in each 1.5 hours" in run(capsys, "quota", "local", "--data", data)[1]


def test_earnings_name_device_and_layers(capsys: pytest.CaptureFixture[str], data: str) -> None:
    _, out, _ = run(capsys, "balance", "--earnings", "--data", data)
    assert out.splitlines()[-1].split("\t")[1:] == ["computed for it", "4–7", "3", "40", "1.5"]


def test_status_says_what_may_be_in_memory(capsys: pytest.CaptureFixture[str], data: str) -> None:
    _, out, _ = run(capsys, "status", "--data", data)
    (line,) = [line for line in out.splitlines() if line.startswith("memory")]
    assert "150.0 MB resident" in line
    assert "at most 204.0 MB: 4.0 MB share" in line
    assert "full conversations come to 16.0 MB" in line


def test_run(capsys: pytest.CaptureFixture[str], data: str, node: FakeNode) -> None:
    """run streams the answer as it is, and its JSON has what the issue promises."""
    code, out, err = run(capsys, "run", MODEL, "hello", "--data", data)
    assert (code, out, err) == (0, "The quick brown fox jumps.\n", "")
    assert "<|im_start|>user\nhello" in str(node.requests[0].prompt)
    _, out, _ = run(capsys, "run", MODEL, "hello", "--raw", "--data", data, "--json")
    document = json.loads(out)
    assert document["text"] == "The quick brown fox jumps."
    assert document["mode"] == "pipeline"
    assert document["stages"][1]["layers"] == [4, 8]
    assert set(document["usage"]) >= {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert node.requests[1].prompt == "hello"


def test_model_file(capsys: pytest.CaptureFixture[str], data: str, node: FakeNode, tmp_path: Path) -> None:
    """A path is made absolute and added before it is asked."""
    (tmp_path / "my.gguf").write_bytes(b"GGUF")
    path = str(tmp_path / "my.gguf")
    assert run(capsys, "run", path, "hello", "--data", data)[0] == 0
    assert run(capsys, "pull", path, "--data", data)[0] == 0
    assert node.commands == [("add_model", {"model": path})] * 2
    assert run(capsys, "forget", "nobody", "--data", data)[0] == 1


def test_two_devices_under_one_identity_are_told(
    capsys: pytest.CaptureFixture[str], data: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = node.peers()
    view["peers"][1]["duplicate"] = {
        "message": "two devices run under the identity of kitchen",
        "hint": "stop one",
    }
    monkeypatch.setattr(node, "peers", lambda: view)
    code, out, err = run(capsys, "peers", "--data", data)
    assert code == 0
    assert "kitchen" in out
    assert err == "two devices run under the identity of kitchen\n  stop one\n"
    _, out, _ = run(capsys, "doctor", "--data", data, "--json")
    (check,) = [c for c in json.loads(out)["checks"] if c["name"] == "identity of peer kitchen"]
    assert (check["state"], check["hint"]) == ("problem", "stop one")


@pytest.mark.parametrize(
    ("back", "cell", "said"),
    [
        ("ok", "both ways", ""),
        (
            "unreachable",
            "one way: to it",
            "kitchen does not reach this device by itself (/ip4/192.0.2.1: no answer)",
        ),
        ("untried", "known: to it", ""),
    ],
)
def test_both_directions_of_a_link_are_told(
    capsys: pytest.CaptureFixture[str], data: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch,
    back: str, cell: str, said: str,
) -> None:  # fmt: skip
    tried = [{"address": "/ip4/192.0.2.1", "reason": "no\nanswer"}] if back == "unreachable" else []
    view = {**node.peers(), "links": [link_row(PEER, PEER_TWO, back, tried=tried)]}
    monkeypatch.setattr(node, "peers", lambda: view)
    _, out, _ = run(capsys, "peers", "--data", data)
    assert [line.split("\t")[-1] for line in out.splitlines()] == ["LINK", "-", cell]
    _, out, _ = run(capsys, "peers", "--links", "--data", data)
    there, way_back = (line.split("\t") for line in out.splitlines()[1:])
    assert there[:3] == ["studio", "kitchen", "ok"]
    state = {"ok": "ok", "unreachable": "not reachable", "untried": "never tried"}[back]
    assert way_back[:4] == ["kitchen", "studio", state, "2.4 ms"]
    assert way_back[5] == ("/ip4/192.0.2.1: no answer" if tried else "-")
    _, out, _ = run(capsys, "doctor", "--data", data)
    assert (said in out) is True
    assert ("does not reach" in out) is bool(said)


def test_links_of_every_kind_have_a_word() -> None:
    assert link_text({}, "a") == "-"
    assert link_text({"state": "none"}, "a") == "no way"
    from_it = [{"from": "a", "state": "unreachable"}, {"from": "b", "state": "ok"}]
    assert link_text({"state": "one_way", "directions": from_it}, "a") == "one way: from it"


def test_completion(capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets a script that knows the program."""
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = run(capsys, "completion", shell)
        assert code == 0
        assert "_P2PNODE_COMPLETE" in out


def test_api_address(capsys: pytest.CaptureFixture[str], data: str) -> None:
    """--api finds the node without its folder."""
    address = json.loads((Path(data) / "node.json").read_text())["api"].removeprefix("http://")
    code, out, _ = run(capsys, "peers", "--api", address, "--json")
    assert code == 0
    assert len(json.loads(out)["peers"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, "there is no command"),
        (["peeers"], 2, "did you mean 'peers'"),
        (["ls"], 2, "did you mean 'models'"),
        (["serve"], 2, "did you mean 'join'"),
        (["help"], 2, "did you mean '--help'"),
        (["peers", "--nope"], 2, "No such option"),
        (["plan", "--stages", "three"], 2, "'three' is not a whole number"),
        (["run", "--temperature", "hot", "x", "y"], 2, "'hot' is not a number"),
        (["run", "--max-tokens", "0", "x", "y"], 2, "max-tokens"),
        (["run", "--temperature", "nan", "x", "y"], 2, "'nan' is not a number"),
        (["plan", "--max-rtt", "inf", "x"], 2, "'inf' is not a number"),
        (["invite", "--expires", "soon"], 1, "not a duration"),
        (["topup", "much"], 1, "not a number"),
        (["topup", "0.0000001"], 1, "not an amount"),
        (["quota", "local", "0"], 1, "not an amount"),
        (["quota", "local", "5", "--lift"], 2, "either UNITS or --lift"),
        (["quota", "local", "5", "--per", "fortnight"], 2, "fortnight"),
        (["peers", "--api", "not an address"], 1, "HOST:PORT"),
        (["peers", "--api", "127.0.0.1:1"], 1, "no node answers"),
        (["peers", "--data", "/nonexistent/folder"], 1, "no node is running"),
        (["config", "show", "--config", "/nonexistent.toml"], 1, "there is no config file"),
    ],
)
def test_errors(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str) -> None:
    """An error is one line with a hint on stderr; 2 for usage, 1 for the rest; no traceback."""
    got, out, err = run(capsys, *arguments)
    assert got == code
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2


@pytest.mark.parametrize("arguments", [[], ["log"], ["keys"], ["adapters"]])
def test_nothing_said_is_answered_with_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """A page that can be read, on stderr, because nothing was done."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: p2pnode")
    assert len(err.splitlines()) > 5
    assert "error" not in err.split("Commands:")[0]


def test_error_as_json(capsys: pytest.CaptureFixture[str], data: str) -> None:
    """With --json an error is one document too, with the node's own code."""
    code, out, err = run(capsys, "run", "gpt-9", "x", "--data", data, "--json")
    assert code == 1
    assert json.loads(out)["error"]["code"] == "model_not_found"
    assert "gpt-9" in err


def test_bug_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a bug of ours is one line, unless P2PNODE_DEBUG asks for more."""
    monkeypatch.setitem(COMMANDS, "peers", ("no_such_module", "peers", ""))
    code, _, err = run(capsys, "peers")
    assert code == 1
    assert "P2PNODE_DEBUG=1" in err
    monkeypatch.setenv("P2PNODE_DEBUG", "1")
    with pytest.raises(ModuleNotFoundError):
        run_command(["peers"])


def test_node_file_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A broken node.json is said to be that."""
    for text in ("{", "[]", '{"api": 5}'):
        (tmp_path / "node.json").write_text(text)
        code, _, err = run(capsys, "peers", "--data", str(tmp_path))
        assert code == 1
        assert "node.json" in err


def test_every_command_has_help_and_json() -> None:
    """Each command explains itself and, groups apart, prints JSON."""
    waiting = list(every_command().items())
    while waiting:
        name, command = waiting.pop()
        assert command.help, name
        if isinstance(command, click.Group):
            waiting += [(f"{name} {inner}", leaf) for inner, leaf in command.commands.items()]
        else:
            assert any(option.name == "as_json" for option in command.params), name


def test_help_is_light() -> None:
    """--help loads neither the server nor the engine."""
    program = (
        "import sys; sys.argv = ['p2pnode', '--help']\n"
        "from p2pnode.cli.main import run_command\n"
        "run_command(['--help'])\n"
        "heavy = {'quart', 'llama_cpp', 'numpy', 'aioquic', 'rich', 'msgspec', 'http.client'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout


def test_doctor(capsys: pytest.CaptureFixture[str], data: str) -> None:
    """doctor says what works and what does not, also about each peer."""
    _, out, _ = run(capsys, "doctor", "--data", data, "--json")
    names = [check["name"] for check in json.loads(out)["checks"]]
    assert names[:3] == ["data folder", "memory", "network"]
    assert names[-2:] == ["node", "peer kitchen"]


def test_config_show(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every value says where it comes from."""
    (tmp_path / "config.toml").write_text('threads = 3\nname = "toml"\n')
    monkeypatch.setenv("P2PNODE_NAME", "environment")
    _, out, _ = run(capsys, "config", "show", "--origin", "--json", "--data", str(tmp_path))
    rows = {row["name"]: row for row in json.loads(out)["settings"]}
    assert rows["name"] == {"name": "name", "value": "environment", "origin": "environment P2PNODE_NAME"}
    assert rows["threads"]["origin"].startswith("file ")
    assert rows["api"]["origin"] == "default"
    code, out, _ = run(capsys, "config", "show", "--data", str(tmp_path))
    assert code == 0
    assert "threads\t3" in out


def test_layer_bar() -> None:
    """The bar is as wide as ever, each device has its share, and a tiny one is still seen."""
    stages = [{"layers": [0, 1]}, {"layers": [1, 60]}, {"layers": [60, 64]}]
    cells = [cells for cells, _ in layer_bar(stages)]
    assert [len(part) for part in cells] == [1, 30, 2]
    assert layer_bar([]) == []


def test_words() -> None:
    """Numbers and names as people read them."""
    assert size_text(999) == "999 B"
    assert size_text(9_100_000) == "9.1 MB"
    assert size_text(None) == "-"
    assert units_text(1_250_000) == "1.25"
    assert units_text(-1) == "-0.000001"
    assert units_text(5_000_000) == "5"
    assert units_text(10_000_000) == "10"
    assert units_text(0) == "0"
    assert units_text(None) == "-"
    assert layers_text([4, 8]) == "4-7"
    assert layers_text([4, 4]) == "none"
    assert layers_text(None) == "-"
    assert short("12D3KooWabcdefgh") == "…abcdefgh"
    assert one_line("a\nb\x1b[0m") == "a b [0m"


def test_blocks() -> None:
    """The map by hand is said with the last layer, as people count, and sent with the end."""
    assert parse_blocks("a:0-3, b c:4") == [("a", 0, 4), ("b c", 4, 5)]
    for wrong in ("", "a", "a:", "a:x-2", "a:3-1", ":"):
        with pytest.raises(RequestError):
            parse_blocks(wrong)


def test_a_map_pins_and_caps_are_read(tmp_path: Path) -> None:
    written = tmp_path / "blocks.toml"
    written.write_text(
        '[[blocks]]\ndevice = "a"\nlayers = [0, 4]\n[[blocks]]\ndevice = "b c"\nlayers = [4, 8]\n'
    )
    assert read_blocks(written) == [("a", 0, 4), ("b c", 4, 8)]
    with pytest.raises(RequestError, match="cannot be read"):
        read_blocks(tmp_path / "missing.toml")
    assert parse_pins(["a:0-3", "b c:4"]) == {"a": (0, 4), "b c": (4, 5)}
    assert parse_pins([]) == {}
    with pytest.raises(RequestError, match="a is pinned twice"):
        parse_pins(["a:0", "a:1"])
    assert parse_caps(["a=2G", "b c=512M"]) == {"a": 2 << 30, "b c": 512 << 20}
    for wrong in ("a", "=1G", "a="):
        with pytest.raises(P2PNodeError):
            parse_caps([wrong])
    with pytest.raises(RequestError, match="is no limit of memory"):
        parse_caps(["a=1G", "a=2G"])


def test_show_says_what_a_model_is(capsys: pytest.CaptureFixture[str], node: FakeNode, data: str) -> None:
    """Everything a person asks before running one; the template whole on request, an unknown name in words."""
    node.metadata.update(license="apache-2.0", chat_template="{{ messages }}" + "x" * 400)
    code, out, _ = run(capsys, "show", MODEL, "--data", data)
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    assert code == 0
    assert {"name", "architecture", "quantisation", "layers", "size", "licence", "chat template"} <= {
        name.strip() for name in lines
    }
    assert "apache-2.0" in out
    assert " \N{HORIZONTAL ELLIPSIS}" in out
    _, out, _ = run(capsys, "show", MODEL, "--template", "--data", data)
    assert out.strip() == node.metadata["chat_template"]
    code, _, err = run(capsys, "show", "nobody-has-it", "--data", data)
    assert code == 1
    assert "nobody-has-it" in err


def test_a_rejection_says_what_was_rejected() -> None:
    assert rejection_text({"candidate": "three", "reason": "5 ms of network"}) == "three: 5 ms of network"
    assert rejection_text({"reason": "nothing else is there"}) == "nothing else is there"
    assert reason_text("local one [0, 8)") == "local one layers 0-7"


def test_the_last_answer_on_a_plan_stands_beside_what_was_expected() -> None:
    measured = {"measured_tokens_per_s": 12.5, "predicted_tokens_per_s": 10.0, "error": 0.25}
    assert measured_text(measured) == ("the last answer on it had 12.5 tokens/s, 10.0 were expected (+25%)")
    assert measured_text({**measured, "error": None}).endswith("10.0 were expected")


def test_a_device_that_is_not_there_says_why() -> None:
    for peer, words in (
        ({"state": "suspect", "lost_reason": "silent for 4 s"}, "suspect, silent for 4 s"),
        (
            {"state": "offline", "lost_reason": "it was stopped", "device_state": "leaving"},
            "offline, it was stopped",
        ),
        ({"state": "offline", "lost_reason": ""}, "offline"),
        ({"state": "online", "lost_reason": "", "device_state": "paused", "lending": ""}, "online, paused"),
    ):
        assert peer_state(peer) == words
