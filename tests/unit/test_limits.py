"""Bounds are sorted into modules and imported from one place: a name that stood in two of them would hide one."""

from __future__ import annotations

import ast
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
