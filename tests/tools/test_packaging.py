"""The wheel, the unit, the image's recipe, compose and the chart: what can be proven without Docker and a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from p2pnode.cli.join import join

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
CHART = PACKAGING / "helm/p2pnode"


def run(*command: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **settings)


# --- the wheel ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the built wheel; its libraries are this environment's, p2pnode is not."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("p2pnode", "web", "models"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(root), str(source))
    assert built.returncode == 0, built.stderr
    (wheel,) = root.glob("p2pnode-*.whl")
    environment = root / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=60)
    done = run(*pip, f"--python={environment / 'bin/python'}", "install", "--no-deps", str(wheel))
    assert done.returncode == 0, done.stderr
    # A plain path: the .pth files of that folder, the one of the editable p2pnode among them, are not read.
    (found,) = environment.glob("lib/python3*/site-packages")
    (found / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def installed_p2pnode(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return run(str(installed / "bin/p2pnode"), *arguments, cwd=folder, env=environment)


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    program = "import p2pnode, pathlib; print(pathlib.Path(p2pnode.__file__).parent)"
    found = run(str(installed / "bin/python"), "-c", program, cwd=tmp_path)
    assert Path(found.stdout.strip()).is_relative_to(installed)


def test_the_installed_command_line(installed: Path, tmp_path: Path) -> None:
    assert "Several devices" in installed_p2pnode(installed, tmp_path, "--help").stdout
    version = json.loads(installed_p2pnode(installed, tmp_path, "version", "--json").stdout)
    assert version["packages"]["llama-cpp-python"] != "missing"
    found = installed_p2pnode(installed, tmp_path, "doctor", "--json")
    states = {check["name"]: check["state"] for check in json.loads(found.stdout)["checks"]}
    assert states["llama.cpp"] == "ok", found.stdout


def test_the_installed_node_has_panel_and_model(installed: Path, tmp_path: Path) -> None:
    """All files of the panel, and the embedded model: a demo runs from the wheel alone."""
    share = installed / "share/p2pnode"
    for folder, kinds in (("web", ("html", "css", "js", "mjs", "svg")),):
        wanted = {p.relative_to(ROOT / folder) for kind in kinds for p in (ROOT / folder).rglob(f"*.{kind}")}
        assert wanted <= {path.relative_to(share / folder) for path in (share / folder).rglob("*")}
    assert (share / "models/p2pnode-demo.gguf").is_file()
    found = installed_p2pnode(installed, tmp_path, "demo", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["identical"]


# --- systemd --------------------------------------------------------------------------------------------
UNIT = PACKAGING / "p2pnode.service"


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A PATH whose `p2pnode` writes down what it was started with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "p2pnode").write_text('#!/bin/sh\necho "$@"\n')
    (folder / "p2pnode").chmod(0o755)
    return folder


def options_in(words: list[str]) -> set[str]:
    """Every option must be one that `p2pnode join` has."""
    known = {name for parameter in join.params for name in parameter.opts}
    given = {word for word in words if word.startswith("--")}
    assert given <= known
    return given


@pytest.mark.parametrize("invite", ["none", "p2p1-ABC"])
def test_the_unit_starts_a_node(told: Path, tmp_path: Path, invite: str) -> None:
    """A first device has no ticket; any other gives the file and not what is in it."""
    (line,) = [line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart=")]
    match = re.fullmatch(r"ExecStart=/bin/sh -c '(.*)' p2pnode", line)
    assert match is not None
    script = match[1].replace("$$", "$").replace("/usr/bin/p2pnode", str(told / "p2pnode"))
    (tmp_path / "invite").write_text(invite + "\n")
    environment = {
        "PATH": os.environ["PATH"],
        "CREDENTIALS_DIRECTORY": str(tmp_path),
        "STATE_DIRECTORY": "/var/lib/p",
    }
    words = run("/bin/sh", "-c", script, "p2pnode", env=environment).stdout.split()
    assert words[:3] == ["join", "--data", "/var/lib/p"]
    assert ("--invite-file" in options_in(words)) == invite.startswith("p2p1-")
    assert "p2p1-ABC" not in words


def test_the_unit_is_hardened() -> None:
    settings = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if re.match(r"\w+=", line))
    assert settings["DynamicUser"] == settings["NoNewPrivileges"] == "yes"
    assert settings["ProtectSystem"] == "strict"
    assert settings["CapabilityBoundingSet"] == ""
    assert "p2p1-" not in settings["LoadCredential"]


def test_systemd_takes_the_unit() -> None:
    """Where systemd's checker is installed; elsewhere its absence is all this says."""
    checker = shutil.which("systemd-analyze")
    if checker is None:
        assert not Path("/usr/lib/systemd/systemd").exists()
        return
    found = run(checker, "verify", "--recursive-errors=no", str(UNIT))
    complaints = [line for line in (found.stdout + found.stderr).splitlines() if "p2pnode.service" in line]
    assert [line for line in complaints if "not executable" not in line] == []


# --- containers -----------------------------------------------------------------------------------------
def test_the_dockerfile_copies_what_is_there() -> None:
    text = (PACKAGING / "Dockerfile").read_text()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists()
            assert name in allowed, "the build context leaves it out"
    assert re.search(r"^USER [1-9]", text, re.MULTILINE)
    assert "HEALTHCHECK" in text
    assert "-DGGML_NATIVE=OFF" in text


def test_compose_describes_three_nodes() -> None:
    document = yaml.safe_load((PACKAGING / "compose.yaml").read_text())
    nodes = {name: entry for name, entry in document["services"].items() if name != "invite"}
    assert len(nodes) == 3
    volumes = set(document["volumes"])
    for name, entry in document["services"].items():
        mounts = {mount.split(":")[0] for mount in entry["volumes"]}
        assert mounts <= volumes, name
        assert entry["cap_drop"] == ["ALL"]
        assert entry["read_only"] is True
        for other in entry.get("depends_on", {}):
            assert other in document["services"]
    for name, entry in nodes.items():
        assert entry["command"][0] == "join"
        options_in(entry["command"])
        published = [port for port in entry.get("ports", ()) if "9480" in port]
        assert all(port.startswith("127.0.0.1:") for port in published), name


def render(path: Path, release: str = "mesh") -> Any:
    """The chart uses plain values only, so that this can stand for Helm."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def value(found: re.Match[str]) -> str:
        words = found[1].split()
        assert words[1:] in ([], ["|", "quote"]), found[0]
        what = release if words[0] == ".Release.Name" else values[words[0].removeprefix(".Values.")]
        return json.dumps(str(what)) if words[1:] else str(what)

    return yaml.safe_load(re.sub(r"\{\{ (.*?) \}\}", value, path.read_text()))


def test_the_chart_is_consistent() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["name"] == CHART.name
    service, pods = (render(CHART / f"templates/{name}.yaml") for name in ("service", "statefulset"))
    assert service["spec"]["clusterIP"] == "None"
    template = pods["spec"]["template"]
    assert (
        pods["spec"]["selector"]["matchLabels"]
        == template["metadata"]["labels"]
        == service["spec"]["selector"]
    )
    assert pods["spec"]["serviceName"] == service["metadata"]["name"]
    (container,) = template["spec"]["containers"]
    volumes = {volume["name"] for volume in (*template["spec"]["volumes"], *[
        claim["metadata"] for claim in pods["spec"]["volumeClaimTemplates"]])}  # fmt: skip
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == {
        port["name"]: port["containerPort"] for port in container["ports"]
    }


@pytest.mark.parametrize(("pod", "has_ticket"), [("mesh-0", False), ("mesh-1", True)])
def test_pods_start_nodes(told: Path, tmp_path: Path, pod: str, has_ticket: bool) -> None:
    """Pod 0 makes the mesh; the others use the ticket of the secret."""
    (container,) = render(CHART / "templates/statefulset.yaml")["spec"]["template"]["spec"]["containers"]
    script = container["command"][2].replace("/invite/", f"{tmp_path}/")
    (tmp_path / "ticket").write_text("p2p1-ABC")
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    environment = {**values, "PATH": f"{told}:{os.environ['PATH']}", "HOSTNAME": pod}
    words = run("sh", "-c", script, env=environment).stdout.split()
    assert ("--invite-file" in options_in(words)) == has_ticket
    assert words[words.index("--name") + 1] == pod
    assert "--peer" not in words
    words = run(
        "sh", "-c", script, env={**environment, "PEER": "/dns4/a/udp/9481/quic-v1/p2p/X"}
    ).stdout.split()
    assert "--peer" in options_in(words)
