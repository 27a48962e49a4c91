"""The panel's modules under node's own test runner, and the vendored files against their hashes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"


@pytest.mark.slow
def test_modules() -> None:
    """The browser code passes its tests under node; the vectors are the record's own."""
    tests = sorted(str(path) for path in (ROOT / "tests" / "web").glob("*.test.mjs"))
    done = subprocess.run(
        ["node", "--test", *tests], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_vendored_files() -> None:
    """Libraries are byte for byte what was fetched and reviewed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "vendor_web.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_nothing_from_elsewhere() -> None:
    """No own file of the panel names another origin, inline script or inline style (objects are set by property)."""
    for path in [*WEB.glob("*.*"), *WEB.glob("lib/*.js"), *WEB.glob("pages/*.js")]:
        text = path.read_text(encoding="utf-8")
        text = text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://[a-z]", text), path
        assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=(?!\$\{\{)|\son[a-z]+=[\"']", text), path


def test_imports_exist() -> None:
    """Every module that is imported is there: nothing is found out at run time."""
    for path in [*WEB.glob("*.js"), *WEB.glob("lib/*.js"), *WEB.glob("pages/*.js")]:
        for target in re.findall(r'from "(\.[^"]+)"', path.read_text(encoding="utf-8")):
            assert (path.parent / target).is_file(), f"{path} imports {target}"
