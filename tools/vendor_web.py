"""Refresh or check web/vendor: the panel's libraries as published, with hashes and licences beside them.

python tools/vendor_web.py            fetch the pinned packages with npm and rewrite web/vendor
python tools/vendor_web.py --check    compare web/vendor with its hashes (no network)
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "web" / "vendor"
LOCK = VENDOR / "hashes.json"

PACKAGES: dict[str, tuple[str, str, dict[str, str]]] = {
    "preact": ("11.2.0", "MIT", {"dist/preact.mjs": "preact.mjs", "hooks/dist/hooks.mjs": "hooks.mjs"}),
    "htm": ("3.1.1", "Apache-2.0", {"dist/htm.mjs": "htm.mjs"}),
    "markdown-it": ("15.0.3", "MIT", {"dist/browser/markdown-it.esm.min.mjs": "markdown-it.mjs"}),
    "dompurify": ("3.4.18", "MPL-2.0 OR Apache-2.0", {"dist/purify.es.mjs": "purify.mjs"}),
    "@noble/hashes": (
        "2.4.0",
        "MIT",
        {name: f"noble-hashes/{name}" for name in ("sha2.js", "_md.js", "_u64.js", "utils.js")},
    ),
    "qr": ("0.7.0", "MIT OR Apache-2.0", {"index.js": "qr.js"}),
    "@noble/ed25519": ("3.2.0", "MIT", {"index.js": "noble-ed25519.js"}),
}
"""Package: version, licence, file in the package -> file in web/vendor."""

REWRITES = {"hooks.mjs": (('from"preact"', 'from"./preact.mjs"'), ("from 'preact'", "from './preact.mjs'"))}
"""The one change: a bare import becomes a relative one, since the panel has no import map (strict CSP)."""


def strip_source_map(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("//# sourceMappingURL=")]
    return "\n".join(lines) + "\n"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(package: str, version: str, into: Path) -> tarfile.TarFile:
    done = subprocess.run(
        ["npm", "pack", "--silent", f"{package}@{version}"],
        cwd=into,
        check=True,
        capture_output=True,
        text=True,
    )
    return tarfile.open(into / done.stdout.strip().splitlines()[-1])


def refresh() -> None:
    lock: dict[str, dict[str, object]] = {}
    (VENDOR / "licences").mkdir(parents=True, exist_ok=True)
    for package, (version, licence, files) in PACKAGES.items():
        with tempfile.TemporaryDirectory() as folder, fetch(package, version, Path(folder)) as archive:
            short = package.replace("@", "").replace("/", "-")
            hashes = {}
            for source, target in files.items():
                member = archive.extractfile(f"package/{source}")
                assert member is not None, source
                text = strip_source_map(member.read().decode())
                for old, new in REWRITES.get(target, ()):
                    text = text.replace(old, new)
                path = VENDOR / target
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                hashes[target] = digest(path)
            member = archive.extractfile("package/LICENSE")
            assert member is not None
            (VENDOR / "licences" / f"{short}.txt").write_bytes(member.read())
            lock[package] = {"version": version, "licence": licence, "sha256": hashes}
    LOCK.write_text(json.dumps(lock, indent=2) + "\n", encoding="utf-8")


def check() -> list[str]:
    """What differs from hashes.json; nothing when web/vendor is as fetched."""
    lock = json.loads(LOCK.read_text(encoding="utf-8"))
    wrong = []
    expected = {"hashes.json"}
    for package, entry in lock.items():
        short = package.replace("@", "").replace("/", "-")
        expected.add(f"licences/{short}.txt")
        for name, known in entry["sha256"].items():
            expected.add(name)
            path = VENDOR / name
            if not path.is_file() or digest(path) != known:
                wrong.append(f"{name}: not the file of {package} {entry['version']}")
    present = {path.relative_to(VENDOR).as_posix() for path in VENDOR.rglob("*") if path.is_file()}
    wrong += [f"{name}: unknown file" for name in sorted(present - expected)]
    wrong += [f"{name}: missing" for name in sorted(expected - present)]
    return wrong


if __name__ == "__main__":
    if "--check" in sys.argv:
        problems = check()
        print("\n".join(problems) or "web/vendor is as fetched")
        sys.exit(bool(problems))
    refresh()
    print("web/vendor refreshed; read the difference before committing it")
