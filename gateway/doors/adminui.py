"""The namespace that Socket.IO's Admin UI speaks with (`@socket.io/admin-ui`), switched on by ``ADMIN_UI_PASSWORD``.

It is served in the UI's production mode: servers, namespaces, transports, and connections as they come and go. What the
UI's development mode has besides (each client, its rooms, each event) would take a hook into every packet, which the
fast engine has none of, and would show what users write; and none of its commands is offered. For one user there are
``explain`` and ``kick``, over HTTP and at ``/admin``.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, Any

import structlog
from socketio.exceptions import ConnectionRefusedError as Refusal

from gateway.access.addresses import Addresses
from gateway.access.limits import KeyedBuckets, Rate
from gateway.engine.namespace import Namespace
from gateway.errors import RateLimitedError
from gateway.runtime.tasks import end, run

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.access.origins import Origins
    from gateway.connections.counts import Counts
    from gateway.operators.nodes import Nodes, Report
    from gateway.presence.clock import Clock
    from gateway.settings import Settings

_log = structlog.get_logger(__name__)

NAMESPACE = "/admin"
"""What the UI asks for where nobody says otherwise."""

INTERVAL = 2.0
"""Seconds between two times that the UI is told how the servers are."""

TRIES = Rate(10, 60.0)
"""How often an address may try the password, until it knows it. Then even the right one is refused: who guesses would
otherwise go on, a thousand times a second."""

_FEATURES = {"supportedFeatures": ["AGGREGATED_EVENTS"]}


class AdminUIDoor(Namespace):
    """Lets the Admin UI in, and tells it of every node.

    Args:
        settings: the user, the password and the origin.
        origins: which other pages are this gateway's own.
        nodes: those that there are.
        counts: where those are counted that were refused.
        clock: the time, in Unix milliseconds.
    """

    def __init__(self, settings: Settings, origins: Origins, nodes: Nodes, counts: Counts, clock: Clock) -> None:
        super().__init__(NAMESPACE)
        assert settings.admin_ui_password is not None  # noqa: S101 - only then there is one
        self._user = settings.admin_ui_user.encode()
        self._password = settings.admin_ui_password.get_secret_value().encode()
        self._origin = settings.admin_ui_origin
        self._origins = origins
        self._nodes = nodes
        self._counts = counts
        self._clock = clock
        self._addresses = Addresses(settings.trusted_proxies)
        self._tries: KeyedBuckets[str | None] = KeyedBuckets(TRIES)
        self._here: set[str] = set()
        self._telling: asyncio.Task[None] | None = None
        self._opened: dict[str, int] = {}
        """How many connections each node had opened when it was asked last."""
        self._closed: dict[str, int] = {}

    async def on_connect(self, sid: str, request: web.Request, auth: object) -> None:  # noqa: ARG002 - the port's
        """Let in whoever knows the password; see the port."""
        address = self._addresses.of(request)
        if wait := self._tries.take(address, self._clock() / 1000):
            self._counts.refuse("admin-ui", RateLimitedError.code)
            error = RateLimitedError(f"more than {TRIES.count} passwords in {TRIES.seconds:g} s", wait)
            told = {"code": error.code, "message": str(error), "retryAfter": error.retry_after}
            raise Refusal(f"{error}; try again in {wait:.0f} s", told)
        given = auth if isinstance(auth, dict) else {}
        user, password = (_bytes(given.get(name)) for name in ("username", "password"))
        origin = request.headers.get("Origin")
        known = hmac.compare_digest(user, self._user) & hmac.compare_digest(password, self._password)
        if not known or (origin != self._origin and not self._origins.allows(origin, request)):
            _log.warning("refused", door="admin-ui", address=request.remote)
            self._counts.refuse("admin-ui", "FORBIDDEN")
            raise Refusal("invalid credentials")  # the UI's own words, at which it asks again
        self._tries.forget(address)
        _log.info("an operator has come", door="admin-ui", address=request.remote)

    async def on_connected(self, sid: str) -> None:
        """Say what is to be seen, and begin to tell; see the port."""
        self._tell_one(sid, "config", _FEATURES)
        self._here.add(sid)
        if self._telling is None:
            self._telling = run(self._go_on_telling(), "AdminUIDoor")

    async def on_disconnect(self, sid: str, reason: str) -> None:  # noqa: ARG002 - the port's
        """Tell no more; see the port."""
        self._here.discard(sid)
        if not self._here:
            await self.close()

    def on_request(self, sid: str, event: str, args: list[Any], *, acknowledged: bool) -> object:  # noqa: ARG002 - likewise
        """Take no command: none is offered."""
        return {
            "event": "error",
            "error": {"code": "FORBIDDEN", "message": "the Admin UI reads here, and changes nothing"},
        }

    async def close(self) -> None:
        """Tell nobody any more."""
        telling, self._telling = self._telling, None
        self._opened, self._closed = {}, {}
        if telling is not None:
            await end([telling])

    async def _go_on_telling(self) -> None:
        while True:
            try:
                known = await self._nodes.look()
            except Exception:
                _log.exception("the nodes cannot be looked at; trying again")
                known = []
            for node in known:
                if node.report is not None:
                    stats = self._stats(node.report)
                    for sid in tuple(self._here):
                        self._tell_one(sid, "server_stats", stats)
            await asyncio.sleep(INTERVAL)

    def _tell_one(self, sid: str, event: str, data: object) -> None:
        try:
            peer = self.peer(sid)
        except Refusal:  # it has left
            return
        peer.write(self.codec.encode([(event, data)]))

    def _stats(self, report: Report) -> dict[str, Any]:
        now = report.at
        opened, closed = report.opened, report.opened - report.clients
        events = [
            {"type": kind, "timestamp": now, "count": count - before.get(report.node, count)}
            for kind, count, before in (
                ("rawConnection", opened, self._opened),
                ("rawDisconnection", closed, self._closed),
            )
        ]
        self._opened[report.node], self._closed[report.node] = opened, closed
        return {
            "serverId": report.node,
            "hostname": report.node.rpartition("-")[0],
            "pid": report.pid,
            "uptime": max(0, now - report.started_at) / 1000,
            "clientsCount": report.clients,
            "pollingClientsCount": report.polling,
            "aggregatedEvents": [event for event in events if event["count"]],
            "namespaces": [{"name": name, "socketsCount": count} for name, count in report.sockets.items()],
        }


def _bytes(given: object) -> bytes:
    return given.encode(errors="surrogatepass") if isinstance(given, str) else b""
