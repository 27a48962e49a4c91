"""What the README tells a stranger to type works as it is written there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode.endpoint import find_node
from tests.kit.mesh import MeshOfProcesses, mesh_of
from tests.kit.toy_models import TOYS, write_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = "my-model"


def written_commands() -> list[str]:
    """Every `p2pnode ...` in a block or between backticks, without its comment, once."""
    blocks = re.findall(r"^\$ (p2pnode .*)$", README, re.MULTILINE)
    spans = re.findall(r"`(p2pnode [^`]+)`", README)
    return list(dict.fromkeys(command.split("  #")[0].strip() for command in (*blocks, *spans)))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    root = tmp_path_factory.mktemp("mesh")
    file = write_model(root / f"{MODEL}.gguf", replace(TOYS["llama"], text=True, layers=5, vocabulary=320))
    with mesh_of(root, "studio", "kitchen", "attic", first_arguments=("--model", str(file))) as made:
        yield made


def test_its_commands_are_the_ones_tested_here() -> None:
    joins = [command for command in written_commands() if command.startswith("p2pnode join")]
    assert sorted(joins) == [
        "p2pnode join",
        "p2pnode join --mcp FILE",
        "p2pnode join --model FILE.gguf",
        "p2pnode join --model my-model.gguf",
        "p2pnode join TICKET",
    ]
    assert len(written_commands()) >= len(joins) + 9


@pytest.mark.parametrize("command", [c for c in written_commands() if not c.startswith("p2pnode join")])
def test_a_command_of_the_readme(mesh: MeshOfProcesses, command: str) -> None:
    """On the first device, with names of the mesh where the README says MODEL and DEVICE."""
    names = {"MODEL": MODEL, "DEVICE": "attic"}
    words = [names.get(word, word) for word in shlex.split(command)]
    environment = {**os.environ, "P2PNODE_DATA": str(mesh.nodes[0].data)}
    found = subprocess.run(
        [sys.executable, "-m", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()


PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_its_programs_are_an_openai_client_and_ours() -> None:
    openai, ours = PROGRAMS
    assert 'base_url="http://127.0.0.1:9480/v1"' in openai
    assert "p2pnode.connect()" in ours


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_the_readme(mesh: MeshOfProcesses, program: str) -> None:
    program = program.replace("http://127.0.0.1:9480", find_node(mesh.nodes[0].data).url)
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "P2PNODE_DATA": str(mesh.nodes[0].data)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout


def test_its_make_targets_files_and_links_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)) <= targets
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
