"""Run tests and measure which lines and branches they reach.

Every line and branch of the pure modules must be reached (they have no clock, socket or file that could be an
excuse), and 85 % of everything else, processes that the tests start included. What is pure is read from the
import contract in pyproject.toml, so that a module added there is held to it at once.

    python tools/measure_coverage.py            everything, both judged: `make coverage`
    python tools/measure_coverage.py --pure     the quick tests, pure modules judged: `make coverage-pure`
    python tools/measure_coverage.py --rest     what --pure leaves out, without measuring
    python tools/measure_coverage.py PYTEST ARGUMENT...      measured and not judged
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".coverage"
SUITE = ["-m", "not slow and not interop"]
QUICK = [
    "tests/unit",
    "tests/contract",
    "tests/sim",
    "tests/conformance",
    "tests/integration/test_port_mapping.py",
]
"""Where pure modules are tested: in pytest's own process, so that only they need to be counted."""
SIDE_BY_SIDE = ["-n", "logical", "--maxprocesses", "4", "--dist", "worksteal"]
"""Most of them compute in pytest's own process; what starts whole nodes has the machine to itself."""
PURE_PERCENT_MIN = 100.0
ELSEWHERE_PERCENT_MIN = 85.0
CONTRACT = "pure modules"
ALSO_PURE = ("p2pnode.transport.memory",)
"""The simulator's transport: no clock, no sockets, seeded faults; the contract cannot list it, since it awaits."""
PLACES_SHOWN_MAX = 12


@dataclass(frozen=True)
class Reached:
    """What the tests reached of one module."""

    module: str
    points: int
    """Lines and branches that could be reached."""
    missed_lines: tuple[int, ...]
    missed_branches: tuple[tuple[int, int], ...]

    @property
    def missed(self) -> int:
        return len(self.missed_lines) + len(self.missed_branches)


def pure_modules() -> tuple[str, ...]:
    """Modules and packages of the purity contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in settings["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "forbidden" and contract["name"].startswith(CONTRACT):
            return (*contract["source_modules"], *ALSO_PURE)
    raise SystemExit(f"pyproject.toml has no contract about {CONTRACT!r}")


def is_pure(module: str, pure: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in pure)


def write_settings(*, only_pure: bool) -> Path:
    """Absolute paths, because the nodes that the tests start run in folders of their own."""
    path = DATA / "settings.toml"
    settings = {"branch": "true", "parallel": "true", "data_file": json.dumps(str(DATA / "data"))}
    if only_pure:
        files = [ROOT / name.replace(".", "/") for name in pure_modules()]
        settings["include"] = json.dumps([f"{file}/*" if file.is_dir() else f"{file}.py" for file in files])
    else:
        settings |= {
            "sigterm": "true",
            "patch": '["subprocess"]',
            "source": json.dumps([str(ROOT / "p2pnode")]),
        }
    lines = ["[tool.coverage.run]", *(f"{key} = {value}" for key, value in settings.items())]
    lines += ["[tool.coverage.report]", 'exclude_also = ["assert_never\\\\("]', ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def run_tests(arguments: list[str], *, only_pure: bool) -> int:
    """pytest's exit code; the measurements of all processes lie in DATA afterwards."""
    DATA.mkdir(exist_ok=True)
    for old in DATA.glob("data*"):
        old.unlink()
    settings = write_settings(only_pure=only_pure)
    if only_pure:
        counted = ["pytest", "-q", *SIDE_BY_SIDE, "--cov", f"--cov-config={settings}", "--cov-report="]
    else:
        counted = ["coverage", "run", f"--rcfile={settings}", "-m", "pytest", "-q"]
    command = [sys.executable, "-m", *counted, *arguments]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def reached() -> list[Reached]:
    """Every module of the package, those that no test imported included."""
    settings = f"--rcfile={DATA / 'settings.toml'}"
    report = DATA / "report.json"
    steps = [["json", "-q", settings, "-o", str(report)]]
    if any(DATA.glob("data.*")):  # of several processes, and not put together by pytest-cov
        steps.insert(0, ["combine", "-q", settings])
    for step in steps:
        subprocess.run([sys.executable, "-m", "coverage", *step], cwd=ROOT, check=True)
    document = json.loads(report.read_text(encoding="utf-8"))
    return [_reached(name, found) for name, found in sorted(document["files"].items())]


def _reached(name: str, found: dict[str, Any]) -> Reached:
    path = Path(name) if Path(name).is_absolute() else ROOT / name
    parts = path.relative_to(ROOT).with_suffix("").parts
    counts = found["summary"]
    return Reached(
        module=".".join(parts[:-1] if parts[-1] == "__init__" else parts),
        points=counts["num_statements"] + counts["num_branches"],
        missed_lines=tuple(found["missing_lines"]),
        missed_branches=tuple((first, last) for first, last in found["missing_branches"]),
    )


def percent(modules: list[Reached]) -> float:
    points = sum(module.points for module in modules)
    return 100.0 * (points - sum(module.missed for module in modules)) / points if points else 100.0


def table(modules: list[Reached], pure: tuple[str, ...]) -> list[str]:
    """A line for each package and kind."""
    groups: defaultdict[tuple[str, bool], list[Reached]] = defaultdict(list)
    for module in modules:
        parts = module.module.split(".")
        package = ".".join(parts[:2]) if (ROOT / "/".join(parts[:2])).is_dir() else "p2pnode"
        groups[package, is_pure(module.module, pure)].append(module)
    lines = [f"  {'package':<22} {'kind':<6} {'modules':>7} {'lines and branches':>19} {'reached':>9}"]
    for (package, kind), found in sorted(groups.items(), key=lambda item: (not item[0][1], item[0][0])):
        points = sum(module.points for module in found)
        lines.append(
            f"  {package:<22} {'pure' if kind else 'shell':<6} {len(found):>7} {points:>19,} {percent(found):>7.1f} %"
        )
    return lines


def complaints(modules: list[Reached], pure: tuple[str, ...]) -> list[str]:
    """What keeps the coverage from being enough; empty when it is."""
    lines = [
        f"{name} is in the contract about {CONTRACT}, and no test imports it"
        for name in pure
        if not any(is_pure(module.module, (name,)) for module in modules)
    ]
    for module in modules:
        if is_pure(module.module, pure) and module.missed:
            where = [str(line) for line in module.missed_lines]
            where += [f"{first}→{'end' if last < 0 else last}" for first, last in module.missed_branches]
            more = f" and {len(where) - PLACES_SHOWN_MAX} more" if len(where) > PLACES_SHOWN_MAX else ""
            places = ", ".join(where[:PLACES_SHOWN_MAX])
            lines.append(f"{module.module} is pure, and no test reaches line {places}{more}")
    shells = [module for module in modules if not is_pure(module.module, pure)]
    if percent(shells) < ELSEWHERE_PERCENT_MIN:
        lines.append(
            f"{percent(shells):.1f} % of the shells are reached, {ELSEWHERE_PERCENT_MIN:.0f} % are wanted"
        )
    return lines


def run_rest() -> int:
    ignored = [f"--ignore={path}" for path in QUICK]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *SUITE, *ignored, "tests"], cwd=ROOT, check=False
    ).returncode


def main(arguments: list[str]) -> int:
    if arguments == ["--rest"]:
        return run_rest()
    only_pure = arguments == ["--pure"]
    chosen = [*SUITE, *QUICK] if only_pure else arguments or SUITE
    failed = run_tests(chosen, only_pure=only_pure)
    if failed and only_pure:
        return failed
    modules, pure = reached(), pure_modules()
    print("\ncoverage, lines and branches:")
    print("\n".join(table(modules, pure)))
    if arguments and not only_pure:
        return failed
    wrong = complaints(modules, pure)
    for line in wrong:
        print(f"  ✗ {line}")
    if not wrong:
        print("  ✓ every line and branch of the pure modules", end="")
        print("" if only_pure else f", at least {ELSEWHERE_PERCENT_MIN:.0f} % of the shells")
    return failed or int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
