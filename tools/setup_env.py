"""Make `.venv` ready: `python3 tools/setup_env.py`. Standard library only, quick when nothing changed.

llama.cpp is compiled from source once per machine (minutes); pip's wheel cache keeps the result.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".p2pnode-setup"
INPUTS = ("pyproject.toml", "constraints.txt", "tools/setup_env.py")
LLAMA = "llama-cpp-python==0.3.36"
CMAKE_ARGS = (
    "-DGGML_RPC=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF"
    " -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF"
)
DISK_BYTES_MIN = 2_500_000_000
"""The build folder, the wheel cache and the environment together stay under this."""


class MissingError(Exception):
    """Something the machine lacks; the message says what to do about it."""


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def check_python() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is run by whatever Python is there
        found = ".".join(map(str, sys.version_info[:3]))
        raise MissingError(
            f"Python 3.11 or newer is needed, this is {found}: run with PYTHON=python3.11 make setup"
        )
    try:
        import ensurepip  # noqa: F401  (only whether it is there)
    except ImportError:
        raise MissingError("this Python has no ensurepip: install the package python3-venv") from None


def check_compiler() -> None:
    for names, what in (
        ((os.environ.get("CC", ""), "cc", "gcc", "clang"), "a C compiler"),
        ((os.environ.get("CXX", ""), "c++", "g++", "clang++"), "a C++ compiler"),
    ):
        if not any(name and shutil.which(name.split()[0]) for name in names):
            raise MissingError(
                f"{what} is needed to build llama.cpp: install build-essential (Debian) or Xcode tools (macOS)"
            )


def check_disk() -> None:
    free_bytes = shutil.disk_usage(ROOT).free
    if free_bytes < DISK_BYTES_MIN:
        raise MissingError(
            f"{free_bytes / 1e9:.1f} GB of disk are free here, {DISK_BYTES_MIN / 1e9:.1f} GB are needed"
        )


def fingerprint() -> str:
    digest = hashlib.sha256(f"{sys.version}{ROOT}".encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def python() -> str:
    return str(VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def pip(arguments: Sequence[str], *, env: dict[str, str] | None = None, progress: str = "") -> None:
    """Run pip, showing compile steps as one moving line; its whole output only when it fails."""
    command = [python(), "-m", "pip", "--disable-pip-version-check", "install", *arguments]
    started_s = time.monotonic()
    lines: list[str] = []
    shown_s = 0.0
    with subprocess.Popen(
        command,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            step = re.match(r"\s*\[(\d+)/(\d+)\]", line)
            now_s = time.monotonic()
            if progress and (step or now_s - shown_s > 20) and now_s - shown_s > 3:
                where = f"{step[1]} of {step[2]} files" if step else "preparing"
                say(f"{progress}: {where}, {now_s - started_s:.0f} s")
                shown_s = now_s
    if process.returncode != 0:
        tail = "".join(lines[-40:])
        raise MissingError(
            f"pip failed ({' '.join(arguments[:3])} ...). Its last lines:\n{tail}{explain(tail)}"
        )


def explain(output: str) -> str:
    if "No space left" in output:
        return "\nThe disk is full: free some space and run again."
    if "cmake" in output.lower() and "not found" in output.lower():
        return "\ncmake could not be found or installed: install the package cmake and run again."
    return ""


def install_llama() -> None:
    arguments = ["-v", "--no-binary", "llama-cpp-python", *constraints(), LLAMA]
    env = {"CMAKE_ARGS": CMAKE_ARGS}
    say("llama.cpp: from pip's wheel cache, or a build of several minutes the first time on this machine")
    pip(arguments, env=env, progress="building llama.cpp")
    probe = "import llama_cpp, sys; sys.exit(0 if llama_cpp.llama_supports_rpc() else 3)"
    if subprocess.run([python(), "-c", probe], capture_output=True, check=False).returncode == 0:
        return
    say("the cached llama.cpp lacks RPC or does not run on this processor; building it afresh")
    pip(
        ["--force-reinstall", "--no-deps", "--no-cache-dir", *arguments],
        env=env,
        progress="building llama.cpp",
    )
    check = subprocess.run([python(), "-c", probe], capture_output=True, text=True, check=False)
    if check.returncode != 0:
        raise MissingError(f"the llama.cpp build does not load: {check.stderr.strip()[-400:]}")


def constraints() -> list[str]:
    return ["-c", str(ROOT / "constraints.txt")]


def main() -> int:
    try:
        check_python()
        wanted = fingerprint()
        if STAMP.exists() and STAMP.read_text() == wanted:
            return 0
        check_compiler()
        check_disk()
        if not (VENV / "pyvenv.cfg").exists():
            say(f"creating {VENV.name}")
            venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create(VENV)
        install_llama()
        say("installing p2pnode and its libraries")
        pip([*constraints(), "-e", f"{ROOT}[dev,auth,hub,chat]"])
        STAMP.write_text(wanted)
        say("ready: .venv/bin/p2pnode")
    except MissingError as missing:
        print(f"[setup] cannot go on: {missing}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
