"""`make setup` names what a machine lacks, in one line with a hint, and ends with a code that is not 0.

The real Makefile and the real tools/setup_env.py run in a copy of the project, with a PATH, disks and a package
index of the test's making.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE_PYTHON = os.path.realpath(sys.executable)
NOBODY = "http://127.0.0.1:9/simple"
"""An index that is not there: a connection to the discard port is refused at once."""


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with what a bare machine has: a shell, grep, Python. No compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "grep"):
        (folder / name).symlink_to(shutil.which(name) or "")
    program(folder, "python3", f'exec {BASE_PYTHON} "$@"')
    return folder


def copy_project(folder: Path) -> Path:
    for name in (
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        "tools/setup_env.py",
        "p2pnode/compute/_watch.c",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_project(tmp_path / "project")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose environment is made and empty: what comes next is pip's work."""
    folder = copy_project(tmp_path_factory.mktemp("prepared") / "project")
    subprocess.run([BASE_PYTHON, "-m", "venv", str(folder / ".venv")], check=True, timeout=120)
    return folder


def setup(
    project: Path, path: Path | str, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """`make setup` with nothing of this machine's environment but what is given."""
    make = shutil.which("make")
    assert make is not None
    environment = {"PATH": str(path), "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", **environ}
    command = [make, "--no-print-directory", "-s", "setup", *arguments]
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def refused(found: subprocess.CompletedProcess[str], what: str, hint: str) -> None:
    """One line about what is missing, one about what to do; then only make's own."""
    assert found.returncode != 0
    assert "Traceback" not in found.stderr + found.stdout
    lines = [line for line in found.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 2, found.stderr
    assert lines[0].startswith("[setup] cannot go on: ")
    assert what in lines[0]
    assert lines[1].startswith("[setup] hint: ")
    assert hint in lines[1]


def test_no_compiler(project: Path, tools: Path) -> None:
    refused(setup(project, tools), "no C compiler", "build-essential")
    assert not (project / ".venv").exists()


def test_no_cpp_compiler(project: Path, tools: Path) -> None:
    program(tools, "gcc", "exit 0")
    refused(setup(project, tools), "no C++ compiler", "build-essential")


def test_no_python(project: Path, tools: Path) -> None:
    (tools / "python3").unlink()
    refused(setup(project, tools), "python3 is not there, python3.14 is not there", "PYTHON=")
    refused(setup(project, tools, "PYTHON=python9"), "found: python9 is not there", "PYTHON=")


def test_an_old_python(project: Path, tools: Path) -> None:
    """The one that is asked for is named with its version, and no other is taken in its place."""
    program(tools, "python3.10", 'case "$1" in -V) echo Python 3.10.13;; *) exit 1;; esac')
    refused(setup(project, tools, "PYTHON=python3.10"), "python3.10 is Python 3.10.13", "3.11")


def test_a_newer_python_beside_an_old_one_is_found(project: Path, tools: Path) -> None:
    (tools / "python3").rename(tools / "python3.12")
    program(tools, "python3", 'case "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac')
    refused(setup(project, tools), "no C compiler", "build-essential")  # so the Python was not refused


def test_an_old_python_given_the_script_itself(project: Path) -> None:
    told = "import sys, runpy; sys.version_info = (3, 10, 2, 'final', 0);"
    script = f"{told} runpy.run_path('tools/setup_env.py', run_name='__main__')"
    found = subprocess.run(
        [BASE_PYTHON, "-c", script], cwd=project, capture_output=True, text=True, check=False, timeout=60
    )
    refused(found, "this is 3.10.2", "PYTHON=python3.11")


def test_no_ensurepip(project: Path, tools: Path, tmp_path: Path) -> None:
    """As on Debian without python3-venv."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "ensurepip.py").write_text("raise ImportError('not there')\n")
    found = setup(project, tools, PYTHONPATH=str(tmp_path / "without"))
    refused(found, "ensurepip", "python3-venv")


# --- disks --------------------------------------------------------------------------------------------
@pytest.fixture
def compilers(tools: Path) -> Path:
    """The bare machine's PATH and two compilers: to be found, not to be run."""
    program(tools, "gcc", "exit 1")
    program(tools, "g++", "exit 1")
    return tools


def on_disk(
    disk: Path, options: str, project: Path, path: Path, *, holds: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """`make setup` where `disk` is a disk of its own, which holds the project or the temporary folder."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    disk.mkdir()
    script = 'mount -t tmpfs -o "$0" none "$1" || exit 99; '
    if holds == "project":
        script += 'cp -r "$2/." "$1" && cd "$1"; '
    else:
        script += 'cd "$2" && export TMPDIR="$1"; '
    script += 'make=$(command -v make); PATH="$3" exec "$make" -s setup'
    environment = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", **environ}
    return subprocess.run(
        ["unshare", *as_root, "--mount", "sh", "-c", script, options, str(disk), str(project), str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_no_room_for_the_environment(project: Path, compilers: Path, tmp_path: Path) -> None:
    found = on_disk(tmp_path / "disk", "size=50m", project, compilers, holds="project")
    refused(found, f"GB of disk are free in {tmp_path / 'disk'}", "free some space")


def test_no_room_for_the_build(project: Path, compilers: Path, tmp_path: Path) -> None:
    found = on_disk(tmp_path / "disk", "size=50m", project, compilers, holds="build")
    refused(found, f"GB of disk are free in {tmp_path / 'disk'}", "TMPDIR=")


def test_a_read_only_project(project: Path, compilers: Path, tmp_path: Path) -> None:
    """A remount makes it read-only once the project is in it."""
    program(compilers, "python3", f'mount -o remount,ro "$PWD"; exec {BASE_PYTHON} "$@"')
    (compilers / "mount").symlink_to(shutil.which("mount") or "")
    found = on_disk(tmp_path / "disk", "size=3g", project, compilers, holds="project")
    refused(found, "Read-only file system", "who owns")


# --- pip and the build ----------------------------------------------------------------------------------
def source_of_llama(folder: Path, build: str, files: int = 0) -> Path:
    """A package index folder with a llama-cpp-python of our own, whose build does what `build` says."""
    contents = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "PKG-INFO": "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 0.3.36\n",
        "backend.py": "def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):\n"
        f"    {build}\n",
        **{f"vendor/{number}.c": "" for number in range(files)},
    }
    folder.mkdir()
    with tarfile.open(folder / "llama_cpp_python-0.3.36.tar.gz", "w:gz") as archive:
        for name, text in contents.items():
            entry = tarfile.TarInfo(f"llama_cpp_python-0.3.36/{name}")
            entry.size = len(text)
            archive.addfile(entry, BytesIO(text.encode()))
    return folder


def test_a_disk_that_fills_during_the_build(prepared: Path, compilers: Path, tmp_path: Path) -> None:
    """Room in bytes, so that the build begins, and not for as many files as it has."""
    index = source_of_llama(tmp_path / "index", "raise SystemExit(1)", files=200)
    found = on_disk(
        tmp_path / "disk", "size=4g,nr_inodes=80", prepared, compilers,
        holds="build", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(index),
    )  # fmt: skip
    refused(found, "the disk is full", "free some space")
    assert "No space left on device" in (prepared / ".venv/setup.log").read_text()


@pytest.mark.parametrize(
    ("build", "what", "hint"),
    [
        (
            "raise SystemExit('c++: fatal error: Killed signal terminated program cc1plus')",
            "out of memory",
            "ONE",
        ),
        (
            "raise SystemExit('CMake Error: No CMAKE_CXX_COMPILER could be found.')",
            "compiler does not",
            "reinst",
        ),
        (
            "raise SystemExit('ggml.c:1: error: something nobody foresaw')",
            "nobody foresaw",
            ".venv/setup.log",
        ),
    ],
    ids=["memory", "compiler", "unforeseen"],
)
def test_a_build_that_fails(
    prepared: Path, compilers: Path, tmp_path: Path, build: str, what: str, hint: str
) -> None:
    index = source_of_llama(tmp_path / "index", build)
    found = setup(prepared, compilers, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(index))
    refused(found, what, hint.replace("ONE", "PARALLEL_LEVEL=1"))
    assert not (prepared / ".venv/.p2pnode-setup").exists()


def test_no_network(project: Path, compilers: Path) -> None:
    """An environment that an interrupted setup left is made anew; then pip finds no index."""
    (project / ".venv").mkdir()
    (project / ".venv/pyvenv.cfg").write_text("home = /nowhere\n")
    found = setup(project, compilers, PIP_INDEX_URL=NOBODY)
    assert "creating .venv" in found.stdout
    refused(found, "llama-cpp-python==0.3.36 was not installed: the package index", "PIP_INDEX_URL")
