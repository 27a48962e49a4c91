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
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".p2pnode-setup"
INPUTS = ("pyproject.toml", "constraints.txt", "tools/setup_env.py", "p2pnode/compute/_watch.c")
LLAMA = "llama-cpp-python==0.3.36"
CMAKE_ARGS = (
    "-DGGML_RPC=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF"
    " -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF"
)
LOG = "setup.log"
ENVIRONMENT_BYTES_MIN = 1_200_000_000
"""`.venv` with everything in it: 0.6 GB on Linux."""
BUILD_BYTES_MIN = 1_300_000_000
"""Where pip builds: llama.cpp's sources and objects, and the build tools it fetches for itself."""


class MissingError(Exception):
    """Something the machine lacks, and what to do about it: one line each."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def check_python() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is run by whatever Python is there
        found = ".".join(map(str, sys.version_info[:3]))
        raise MissingError(
            f"Python 3.11 or newer is needed, this is {found}", "run: make setup PYTHON=python3.11"
        )
    try:
        import ensurepip  # noqa: F401  (only whether it is there)
    except ImportError:
        raise MissingError(
            "this Python has no ensurepip, so it cannot make a virtual environment",
            "install the package python3-venv (Debian, Ubuntu)",
        ) from None


def check_compiler() -> None:
    """cmake and ninja are not asked for: pip fetches them for the build where they are not installed."""
    for names, what in (
        ((os.environ.get("CC", ""), "cc", "gcc", "clang"), "C compiler"),
        ((os.environ.get("CXX", ""), "c++", "g++", "clang++"), "C++ compiler"),
    ):
        if not any(name and shutil.which(name.split()[0]) for name in names):
            raise MissingError(
                f"no {what} found, and llama.cpp is built from source",
                "install build-essential (Debian, Ubuntu), gcc-c++ (Fedora) or Xcode's tools (macOS)",
            )


def check_disk() -> None:
    """Room for the environment and for the build, which may be on one disk or on two."""
    wanted: dict[int, tuple[Path, int]] = {}
    for folder, size in ((ROOT, ENVIRONMENT_BYTES_MIN), (Path(tempfile.gettempdir()), BUILD_BYTES_MIN)):
        disk = folder.stat().st_dev
        wanted[disk] = (wanted.get(disk, (folder, 0))[0], wanted.get(disk, (folder, 0))[1] + size)
    for folder, size in wanted.values():
        free = shutil.disk_usage(folder).free
        if free < size:
            raise MissingError(
                f"{free / 1e9:.1f} GB of disk are free in {folder}, {size / 1e9:.1f} GB are needed",
                "free some space"
                + ("" if folder == ROOT else ", or name a folder with room: TMPDIR=... make setup"),
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
        output = "".join(lines)
        (VENV / LOG).write_text(output, encoding="utf-8")
        raise explain(arguments[-1], output)


KNOWN_FAILURES = (
    (r"No space left on device|Disk quota exceeded", "the disk is full", "free some space and run it again"),
    (
        r"name resolution|Name or service not known|nodename nor servname|getaddrinfo failed|Connection refused"
        r"|Network is unreachable|timed out|ProxyError|CERTIFICATE_VERIFY_FAILED|from versions: none"
        r"|conflicting dependencies",  # pip's word for a pin that it finds nowhere
        "the package index cannot be reached or does not have it",
        "check the network, or name a mirror with PIP_INDEX_URL",
    ),
    (
        r"Killed signal terminated|virtual memory exhausted|out of memory",
        "the compiler ran out of memory",
        "close other programs, or build one file at a time: CMAKE_BUILD_PARALLEL_LEVEL=1 make setup",
    ),
    (r"(?i)cmake.*(not found|could not be found)", "cmake is missing", "install the package cmake"),
    (r"(?i)no CMAKE_\w+_COMPILER|is not able to compile", "the compiler does not work", "reinstall it"),
)
"""What pip or the build says, what that means, what to do: the first that fits."""


def explain(what: str, output: str) -> MissingError:
    """A failed pip in one line; all that it said is kept in a file."""
    log = f"{VENV.name}/{LOG}"
    for pattern, reason, hint in KNOWN_FAILURES:
        if re.search(pattern, output):
            return MissingError(f"{what} was not installed: {reason}", f"{hint} (all of pip's words: {log})")
    # pip's own summary ("error: subprocess-exited-with-error") comes after what went wrong and says less.
    errors = re.findall(r"(?im)^.*\berror: (?!subprocess|failed|metadata).*$", output)
    said = errors[0].strip() if errors else "pip failed"
    return MissingError(f"{what} was not installed: {said}", f"pip's words are in {log}")


def is_usable() -> bool:
    """Whether `.venv` works and is of this Python: not what an interrupted setup or a Python now gone left."""
    version = tuple(sys.version_info[:2])
    probe = [python(), "-c", f"import sys, pip; sys.exit(sys.version_info[:2] != {version})"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


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
        last = (check.stderr.strip().splitlines() or ["no message"])[-1]
        raise MissingError(
            f"llama.cpp was built and does not load: {last}", "remove .venv (make clean) and run it again"
        )


def compile_modules() -> None:
    """Processes start in half the time; what tests start may not write compiled modules by itself, or not here."""
    command = [python(), "-m", "compileall", "-q", str(ROOT / "p2pnode")]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def constraints() -> list[str]:
    return ["-c", str(ROOT / "constraints.txt")]


def main() -> int:
    try:
        check_python()
        wanted = fingerprint()
        if STAMP.exists() and STAMP.read_text() == wanted:
            compile_modules()
            return 0
        check_compiler()
        check_disk()
        if not is_usable():
            say(f"creating {VENV.name}")
            venv.EnvBuilder(with_pip=True, clear=VENV.exists(), symlinks=os.name != "nt").create(VENV)
        install_llama()
        say("installing p2pnode and its libraries")
        pip([*constraints(), "-e", f"{ROOT}[dev,auth,hub,chat]"])
        STAMP.write_text(wanted)
        compile_modules()
        say("ready: .venv/bin/p2pnode")
    except MissingError as missing:
        print(f"[setup] cannot go on: {missing}\n[setup] hint: {missing.hint}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"[setup] cannot go on: {error.strerror or error}{where}", file=sys.stderr)
        print("[setup] hint: free some space, or check who owns this folder", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"[setup] cannot go on: {VENV.name} cannot be made: {error}", file=sys.stderr)
        print(
            "[setup] hint: is the disk full? else remove .venv (make clean) and run it again", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
