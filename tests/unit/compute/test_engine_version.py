"""The version that engines tell: the one of the installed package, without loading what reads its metadata."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from p2pnode.compute import engine_version as module


def test_it_is_the_installed_packages() -> None:
    said = module.engine_version.__wrapped__()
    assert said.split()[0] == version("llama-cpp-python")
    assert len(said.split()) == 2  # and ggml's commit


@pytest.mark.parametrize(
    "folders", [[], ["llama_cpp_python-1.0.dist-info", "llama_cpp_python-2.0.dist-info"]]
)
def test_metadata_is_asked_where_the_folder_does_not_tell(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(module, "_package_folder", lambda: tmp_path / "llama_cpp")
    assert module.engine_version.__wrapped__() == version("llama-cpp-python")


def test_an_engine_loads_no_more_than_it_computes_with() -> None:
    """Each of these costs every engine process of every device half a megabyte and more."""
    program = "import sys, p2pnode.compute.engine, p2pnode.compute.engine_loop; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    unwanted = {
        "typing_extensions",
        "importlib.metadata",
        "email",
        "zipfile",
        "asyncio",
        "cryptography",
        "json",
    }
    assert "llama_cpp.llama_cpp" in (loaded := set(found.stdout.split()))
    assert not unwanted & loaded
