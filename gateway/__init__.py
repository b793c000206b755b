"""The server that knows, in real time, who is online."""

from gateway.app import Gateway
from gateway.presence.model import Transition, UserStatus
from gateway.settings import Settings
from gateway.version import __version__

__all__ = ["Gateway", "Settings", "Transition", "UserStatus", "__version__"]
