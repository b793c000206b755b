"""The namespace that Socket.IO's Admin UI speaks with (`@socket.io/admin-ui`), switched on by ``ADMIN_UI_PASSWORD``.

In the UI's production mode it shows servers, namespaces, transports, and connections as they come and go; in its
development mode (``ADMIN_UI_MODE``) each client and its rooms besides, and a client can be disconnected. Neither shows
events: that would take a hook into every packet, which the fast engine has none of, and would show what users write.
The UI's other commands are not offered. For one user there are ``explain`` and ``kick``, over HTTP and at ``/admin``.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from typing import TYPE_CHECKING, Any

import structlog
from socketio.exceptions import ConnectionRefusedError as Refusal

from gateway import wire
from gateway.access.addresses import Addresses
from gateway.access.limits import KeyedBuckets, Rate
from gateway.engine.namespace import Namespace
from gateway.errors import RateLimitedError
from gateway.runtime.tasks import end, run

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from aiohttp import web

    from gateway.access.origins import Origins
    from gateway.connections.counts import Counts
    from gateway.operators.nodes import KnownNode, Listed, Nodes, Report
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

MOST = 250
"""Clients of each node that are listed: each node tells them by the bus, as often."""

SESSION = 12 * 3600
"""Seconds for which the UI's page may be loaded anew without the password."""

_FEATURES = {
    "production": ["AGGREGATED_EVENTS"],
    "development": ["AGGREGATED_EVENTS", "ALL_EVENTS", "DISCONNECT"],  # the second is what it knows the mode by
}

_Key = tuple[str, str]
"""A client's namespace, and its name there."""


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
        self._mode = settings.admin_ui_mode
        self._key = hashlib.scrypt(self._password, salt=NAMESPACE.encode() + self._user, n=2**14, r=8, p=1)
        """What sessions are signed with: of the password, and the same on every node."""
        self._nodes = nodes
        self._counts = counts
        self._clock = clock
        self._addresses = Addresses(settings.trusted_proxies)
        self._tries: KeyedBuckets[str | None] = KeyedBuckets(TRIES)
        self._here: set[str] = set()
        self._by_password: set[str] = set()
        """Those that gave the password, and are to be told what stands for it when the page is loaded anew."""
        self._telling: asyncio.Task[None] | None = None
        self._opened: dict[str, int] = {}
        """How many connections each node had opened when it was asked last."""
        self._closed: dict[str, int] = {}
        self._clients: dict[str, dict[_Key, Listed]] = {}
        """What is listed, by the node it is on."""
        self._told: dict[str, dict[_Key, Listed]] = {}
        """What each UI was told is there."""

    async def on_connect(self, sid: str, request: web.Request, auth: object) -> None:
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
        if not (known or self._is_session(given.get("sessionId"))) or (
            origin != self._origin and not self._origins.allows(origin, request)
        ):
            _log.warning("refused", door="admin-ui", address=request.remote)
            self._counts.refuse("admin-ui", "FORBIDDEN")
            raise Refusal("invalid credentials")  # the UI's own words, at which it asks again
        self._tries.forget(address)
        if known:
            self._by_password.add(sid)
        _log.info("an operator has come", door="admin-ui", address=request.remote)

    async def on_connected(self, sid: str) -> None:
        """Say what is to be seen, and begin to tell; see the port."""
        if sid in self._by_password:
            self._by_password.discard(sid)
            self._say(sid, "session", self._new_session())
        self._say(sid, "config", {"supportedFeatures": _FEATURES[self._mode]})
        self._here.add(sid)
        if self._telling is None:
            self._telling = run(self._go_on_telling(), "AdminUIDoor")

    async def on_disconnect(self, sid: str, reason: str) -> None:  # noqa: ARG002 - the port's
        """Tell no more; see the port."""
        for ours in (self._here, self._by_password):
            ours.discard(sid)
        self._told.pop(sid, None)
        if not self._here:
            await self.close()

    def on_request(
        self,
        sid: str,  # noqa: ARG002 - the port's
        event: str,
        args: list[Any],
        *,
        acknowledged: bool,  # noqa: ARG002 - likewise
    ) -> object | Coroutine[Any, Any, object]:
        """Disconnect a client, where clients are shown; no other command is offered."""
        match event, args:
            case "_disconnect", [str(namespace), bool(), str(client)] if self._is_listed((namespace, client)):
                _log.info("an operator disconnects a client", door="admin-ui", namespace=namespace, client=client)
                return self._disconnect(client, namespace)
        return {
            "event": "error",
            "error": {
                "code": "FORBIDDEN",
                "message": "the Admin UI may disconnect what it lists, and do no more",
            },
        }

    async def close(self) -> None:
        """Tell nobody any more."""
        telling, self._telling = self._telling, None
        self._opened, self._closed, self._clients, self._told = {}, {}, {}, {}
        if telling is not None:
            await end([telling])

    async def _go_on_telling(self) -> None:
        while True:
            try:
                known = await self._nodes.look(MOST if self._mode == "development" else 0)
            except Exception:
                _log.exception("the nodes cannot be looked at; trying again")
                known = []
            for node in known:
                if node.report is not None:
                    stats = self._stats(node.report)
                    for sid in tuple(self._here):
                        self._say(sid, "server_stats", stats)
            if self._mode == "development":
                self._list(known)
            await asyncio.sleep(INTERVAL)

    def _say(self, sid: str, event: str, *data: object) -> None:
        try:
            peer = self.peer(sid)
        except Refusal:  # it has left
            return
        peer.write(self.codec.batch([(event, *data)]))

    async def _disconnect(self, client: str, namespace: str) -> None:
        await self.server.disconnect(client, namespace=namespace)

    # Sessions

    def _new_session(self) -> str:
        until = str(self._clock() // 1000 + SESSION)
        return f"{until}.{self._sign(until)}"

    def _is_session(self, given: object) -> bool:
        until, _, signature = given.partition(".") if isinstance(given, str) else ("", "", "")
        signed = hmac.compare_digest(_bytes(signature), self._sign(until).encode())
        return signed and int(until) > self._clock() // 1000

    def _sign(self, until: str) -> str:
        return hmac.digest(self._key, _bytes(until), "sha256").hex()

    # Clients

    def _is_listed(self, key: _Key) -> bool:
        return any(key in listed for listed in self._clients.values())

    def _list(self, known: list[KnownNode]) -> None:
        """Tell each UI what of the clients has changed since it was told last."""
        before, self._clients = self._clients, {}
        for node in known:
            if node.report is not None:
                self._clients[node.node] = {(each.namespace, each.id): each for each in node.report.listed}
            else:  # of a node that has not answered is known what was
                self._clients[node.node] = before.get(node.node, {})
        clients = {key: each for listed in self._clients.values() for key, each in listed.items()}
        # The UI shows the namespace of the first one, until another is chosen.
        clients = dict(sorted(clients.items(), key=lambda item: (item[0][0] == NAMESPACE, item[0])))
        for sid in tuple(self._here):
            told, self._told[sid] = self._told.get(sid), clients
            if told is None:
                self._say(sid, "all_sockets", [self._socket(each) for each in clients.values()])
            else:
                self._tell_changes(sid, told, clients)

    def _tell_changes(self, sid: str, told: dict[_Key, Listed], clients: dict[_Key, Listed]) -> None:
        now = wire.timestamp(self._clock())
        for namespace, client in told.keys() - clients.keys():
            self._say(sid, "socket_disconnected", namespace, client, "", now)
        for key, each in clients.items():
            before = told.get(key)
            if before is None:
                self._say(sid, "socket_connected", self._socket(each), now)
            elif before != each:
                self._say(sid, "socket_updated", {"id": each.id, "nsp": each.namespace, "transport": _transport(each)})
                for room in set(each.rooms) - set(before.rooms):
                    self._say(sid, "room_joined", each.namespace, room, each.id, now)
                for room in set(before.rooms) - set(each.rooms):
                    self._say(sid, "room_left", each.namespace, room, each.id, now)

    def _socket(self, client: Listed) -> dict[str, Any]:
        since = client.connected_at or self._clock()
        return {
            "id": client.id,
            "clientId": client.client,
            "transport": _transport(client),
            "nsp": client.namespace,
            "data": {} if client.user_id is None else {"userId": client.user_id, "tenant": client.tenant},
            "handshake": {
                "address": client.address,
                "headers": {} if client.user_agent is None else {"user-agent": client.user_agent},
                "query": {},
                "issued": since,
                "time": wire.timestamp(since),
            },
            "rooms": [client.id, *client.rooms],
        }

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


def _transport(client: Listed) -> str:
    return "websocket" if client.upgraded else "polling"
