"""The server that knows, in real time, who is online.

The public names of the package. `Gateway` is what an application attaches to its server, `Settings` configures it, and
the others are what it reads and what its hooks are called with. `gateway.client` is for processes that are no gateway.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gateway.version import __version__

if TYPE_CHECKING:
    from gateway.app import Gateway
    from gateway.channels.changes import ChannelChange
    from gateway.presence.model import Transition, UserStatus
    from gateway.settings import Settings

__all__ = ["ChannelChange", "Gateway", "Settings", "Transition", "UserStatus", "__version__"]

_MODULES = {
    "ChannelChange": "gateway.channels.changes",
    "Gateway": "gateway.app",
    "Settings": "gateway.settings",
    "Transition": "gateway.presence.model",
    "UserStatus": "gateway.presence.model",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import gateway.client` does not load the whole server."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
