"""A process killed in the middle of writing chunks: what the next one believes is really there."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.models.store import ModelStore
from tests.kit.gguf_files import write_toy

WRITER = """
import sys
from pathlib import Path
from p2pnode import limits
from p2pnode.models.store import ModelStore

limits.STORE_FLUSH_BYTES = 300_000
origin, target = ModelStore(Path(sys.argv[1])), ModelStore(Path(sys.argv[2]))
model = origin.get("toy")
target.add_manifest("toy", model.manifest)
for chunk in model.manifest.chunks:
    target.write_chunk(model.content_id, chunk.index, origin.read_chunk(model.content_id, chunk.index))
    print(chunk.index, flush=True)
"""


@pytest.mark.parametrize("after", [1, 7, 18, 30])
def test_a_killed_writer_leaves_nothing_to_doubt(tmp_path: Path, after: int) -> None:
    origin = ModelStore(tmp_path / "origin")
    model = origin.add_file(write_toy(tmp_path / "toy.gguf", layers=32, floats=20_000))
    command = [sys.executable, "-c", WRITER, str(tmp_path / "origin"), str(tmp_path / "target")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(after):
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    store = ModelStore(tmp_path / "target")
    everything = range(len(model.manifest.chunks))
    missing = store.missing(model.content_id, everything)
    assert len(missing) < len(everything) or after < 8
    assert store.verify(model.content_id) == []
    for index in missing:
        store.write_chunk(model.content_id, index, origin.read_chunk(model.content_id, index))
    store.flush(model.content_id)
    assert store.paths(model.content_id)[0].read_bytes() == (tmp_path / "toy.gguf").read_bytes()
