"""The server that knows, in real time, who is online."""

from gateway.app import Gateway
from gateway.presence.model import UserStatus
from gateway.settings import Settings
from gateway.version import __version__

__all__ = ["Gateway", "Settings", "UserStatus", "__version__"]
