"""Changes of a record while no node runs on its folder: opened to write, its lock held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2pnode.cli.log_folder import open_reader


def folder_of(data: Path | None) -> Path:
    import os

    from p2pnode.config import default_data_dir

    return data or default_data_dir(os.environ)


def open_own_log(data: Path | None, *, accept_rollback: bool = False) -> Any:
    """The folder's log, opened to write; DataDirError while a node runs on it."""
    from p2pnode import identity
    from p2pnode.events.store import SqliteLog
    from p2pnode.projections import MeshFold

    folder = folder_of(data)
    open_reader(folder).close()
    own = identity.load(folder / identity.KEY_FILE)
    return SqliteLog.open(folder, own, fold=MeshFold(), accept_rollback=accept_rollback)


def rotate_offline(data: Path | None) -> dict[str, Any]:
    import asyncio

    async def run() -> dict[str, Any]:
        log = open_own_log(data)
        try:
            keys = await log.rotate_keys()
        finally:
            await log.close()
        return {"generation": keys.generation, "log_key": str(keys.log_verifier)}

    return asyncio.run(run())


def drop_snapshot(data: Path) -> bool:
    """A snapshot that lies is deleted; the next start folds from the beginning."""
    from p2pnode.events.database import connect_writer
    from p2pnode.events.folder import LOG_DIR, FolderLock, database_path

    lock = FolderLock(data / LOG_DIR)
    lock.acquire()
    try:
        connection = connect_writer(database_path(data))
        connection.execute("DELETE FROM snapshots")
        connection.close()
    finally:
        lock.release()
    return True


def forget_offline(data: Path | None, subject: str) -> int:
    import asyncio

    async def run() -> int:
        log = open_own_log(data)
        try:
            return int(await log.forget(subject))
        finally:
            await log.close()

    return asyncio.run(run())
