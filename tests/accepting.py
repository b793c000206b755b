"""A fault of CPython's that tests meet: what is accepted in the turn in which its listener is closed stays open.

https://github.com/python/cpython/issues/109564. The gateway serves by uvloop, which has no such fault; servers in the
process of a test are asyncio's.
"""

from __future__ import annotations

from asyncio.selector_events import BaseSelectorEventLoop
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket


def close_what_comes_too_late() -> None:
    """Have asyncio close such a connection, as the system closes those that nobody has accepted."""
    accept = BaseSelectorEventLoop._accept_connection2  # type: ignore[attr-defined]

    @wraps(accept)
    async def accept_unless_closed(self: Any, factory: Any, conn: socket.socket, *args: Any, **options: Any) -> None:
        server = options.get("server", args[2] if len(args) > 2 else None)
        if server is not None and not server.sockets:
            conn.close()
        else:
            await accept(self, factory, conn, *args, **options)

    BaseSelectorEventLoop._accept_connection2 = accept_unless_closed  # type: ignore[attr-defined]
