"""What python-socketio keeps of a handshake, made only for whoever asks for it."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from aiohttp import web
from engineio.async_drivers.aiohttp import translate_request

if TYPE_CHECKING:
    from gateway.engine.front import Kept

REQUEST = "aiohttp.request"
"""Where in an environ the request is."""


class Environ(MutableMapping[str, Any]):
    """A handshake's WSGI environ, as `AsyncServer.get_environ` and handlers of namespaces have it.

    It is some forty strings, in two kilobytes and as many per cent of what a connection costs. The gateway itself asks
    for nothing but the request.
    """

    __slots__ = ("_all", "came")

    def __init__(self, request: web.Request) -> None:
        self.came: web.Request | Kept = request
        """The request, or what has been kept of it."""
        self._all: dict[str, Any] | None = None

    def keep(self, kept: Kept) -> None:
        """Keep this of the handshake instead of its request, unless somebody has asked for more."""
        if self._all is None:
            self.came = kept

    def _request(self) -> web.Request:
        return self.came if isinstance(self.came, web.Request) else self.came.request()

    def __getitem__(self, name: str) -> Any:
        return self._request() if name == REQUEST else self._filled()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._filled()[name] = value

    def __delitem__(self, name: str) -> None:
        del self._filled()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._filled())

    def __len__(self) -> int:
        return len(self._filled())

    def _filled(self) -> dict[str, Any]:
        if self._all is None:
            self._all = translate_request(self._request())
        return self._all
