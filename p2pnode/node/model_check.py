"""Whether a file can be a model of this device, before anything is kept of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from p2pnode.compute.architectures import ARCHITECTURES, REFUSED
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import UnitSpec
from p2pnode.compute.gguf import open_model
from p2pnode.errors import ArchitectureUnsupported, BadModelFile, P2PNodeError

StartEngine = Callable[[], Awaitable[EngineClient]]


async def check_model(path: Path, start: StartEngine = EngineClient.start) -> None:
    """A GGUF file that is whole and of an architecture llama.cpp knows; BadModelFile or ArchitectureUnsupported."""
    if not await asyncio.to_thread(path.is_file):
        raise BadModelFile(f"there is no file {path}", hint="check the path of the model file")
    if (await asyncio.to_thread(path.stat)).st_size == 0:
        raise BadModelFile(f"{path.name} is empty, so it is not a GGUF file", hint="fetch the model again")
    try:
        index, paths = await asyncio.to_thread(open_model, path)
    except BadModelFile as error:
        raise BadModelFile(f"{path.name}: {error.message}", hint=error.hint) from None
    if index.architecture in ARCHITECTURES or index.architecture in REFUSED:
        return
    engine = await start()
    try:
        await engine.load(UnitSpec(model_path=str(paths[0]), vocab_only=True))
    except P2PNodeError as error:
        raise ArchitectureUnsupported(
            f"{path.name}: llama.cpp cannot load the architecture {index.architecture!r}",
            hint="choose another model, or a newer p2pnode",
            reason=error.message,
        ) from None
    finally:
        await engine.close()
