"""structlog without rich: it would load rich, pygments and attrs to colour tracebacks, 3 MB that a node never uses."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import structlog as structlog
else:

    def _imported() -> ModuleType:
        hidden = sys.modules.get("rich")
        sys.modules["rich"] = None  # says: there is none; structlog then goes without
        try:
            import structlog

            return structlog
        finally:
            del sys.modules["rich"]
            if hidden is not None:
                sys.modules["rich"] = hidden

    structlog = _imported()
