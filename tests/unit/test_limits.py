"""Bounds are sorted into modules and imported from one place: none hides another, and something holds each of them."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

from p2pnode import limits

ROOMS = sorted(Path(limits.__file__).parent.glob("[!_]*.py"))


def bounds_of(path: Path) -> list[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return [node.targets[0].id for node in body if isinstance(node, ast.Assign)]


def test_no_name_stands_in_two_modules() -> None:
    names = Counter(name for path in ROOMS for name in bounds_of(path))

    assert [name for name, times in names.items() if times > 1] == []


def test_every_bound_of_every_module_is_found_in_one_place() -> None:
    names = {name for path in ROOMS for name in bounds_of(path)}

    assert names == {name for name in vars(limits) if name.isupper()}


def test_no_bound_is_held_by_nobody() -> None:
    package = Path(limits.__file__).parents[1]
    users = [path for path in package.rglob("*.py") if path.parent != package / "limits"]
    used = {
        name
        for path in users
        for name in re.findall(r"\b[A-Z][A-Z0-9_]+\b", path.read_text(encoding="utf-8"))
    }

    assert {name for path in ROOMS for name in bounds_of(path)} - used == set()
