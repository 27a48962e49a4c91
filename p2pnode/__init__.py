"""p2pnode: several devices, one language model, one sealed record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pnode.client import Answer, AsyncMesh, Mesh, connect, connect_async

__version__ = "0.1.0"
__all__ = ["Answer", "AsyncMesh", "Mesh", "__version__", "connect", "connect_async"]


def __dir__() -> list[str]:
    """What notebooks offer after `p2pnode.`."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """The client's names, imported when first used: the command line must start quickly."""
    if name in __all__:
        from p2pnode import client

        return getattr(client, name)
    raise AttributeError(f"module 'p2pnode' has no attribute {name!r}")
