"""``python -m gateway nodes|explain|kick|drain|undrain``: what operators ask of a gateway, over its HTTP API."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from gateway.errors import CommandError, ConfigurationError
from gateway.operators.tables import between, duration, inert, table

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from gateway.settings import Settings

TIMEOUT = 10.0
"""Seconds that a gateway may take to answer."""

POLL = 0.25
"""Seconds between looks whether a node's clients have gone."""

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - what is listened on, not by us
"""What is asked where a gateway listens on all addresses."""

_FORBIDDEN, _UNAUTHORIZED = 403, 401

_NOT_THERE = "--url, or GATEWAY_URL, says where it is"


class API:
    """One gateway's HTTP API.

    Args:
        settings: where it is, and the key.
        url: where it is; None for what the settings say.
        tenant: of whose users; None for the default one.

    Raises:
        ConfigurationError: there is no key, or the address is none.
    """

    def __init__(self, settings: Settings, url: str | None = None, tenant: str | None = None) -> None:
        self.url = _address(settings, url)
        self._tenant = tenant
        key = settings.gateway_api_key
        for keys in (settings.service_api_keys, settings.service_api_keys_readonly):
            if key is None and keys:
                key = keys[0]
        if key is None:
            raise ConfigurationError("GATEWAY_API_KEY is not set: it is to be one of the gateway's SERVICE_API_KEYS")
        try:
            self._headers = {"X-API-Key": key.get_secret_value().encode("latin-1").decode("latin-1")}
        except UnicodeEncodeError:
            raise ConfigurationError("GATEWAY_API_KEY has letters that no HTTP header can hold") from None

    async def call(self, method: str, path: str, **query: str) -> Any:
        """Call it, and return what its JSON says.

        Raises:
            CommandError: it is not there, or refuses.
        """
        named = query if self._tenant is None else query | {"tenant": self._tenant}
        asked = "&".join(f"{name}={quote(value, safe='')}" for name, value in named.items())
        url = URL(f"{self.url}{path}{asked and '?'}{asked}", encoded=True)
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(TIMEOUT)) as session,
                session.request(method, url, allow_redirects=False) as response,
            ):
                status, body = response.status, await response.read()
        except TimeoutError:
            raise CommandError(f"{self.url} has not answered in {TIMEOUT:g} s; is it a gateway? {_NOT_THERE}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise CommandError(f"no gateway answers at {self.url}: {inert(str(error))}; {_NOT_THERE}") from None
        return self._read(status, body)

    def _read(self, status: int, body: bytes) -> Any:
        try:
            said = json.loads(body)
        except ValueError:
            said = None
        if not isinstance(said, dict) or (status != 200 and "code" not in said):  # noqa: PLR2004 - HTTP's
            raise CommandError(f"what answers at {self.url} ({status}) is no gateway; {_NOT_THERE}")
        if status == 200:  # noqa: PLR2004 - HTTP's
            return said
        detail = inert(str(said.get("detail")))
        if status == _UNAUTHORIZED:
            raise CommandError(f"{detail}; set GATEWAY_API_KEY to one that the gateway at {self.url} has")
        if status == _FORBIDDEN:
            raise CommandError(f"refused: {detail}")
        raise CommandError(f"{detail}{'; nodes shows those that there are' if 'there is nothing at' in detail else ''}")


def _address(settings: Settings, url: str | None) -> str:
    if url is None and settings.gateway_url is None:
        host = _ANYWHERE.get(settings.host, settings.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    given = (url or settings.gateway_url or "").rstrip("/")
    try:
        parts = urlsplit(given)
        known = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        known = False
    if not known:
        raise ConfigurationError("--url, or GATEWAY_URL, takes an address such as https://presence.example")
    return given


def run(
    settings: Settings,
    command: str,
    *,
    of: str = "",
    url: str | None = None,
    tenant: str | None = None,
    as_json: bool = False,
    wait: float | None = None,
    force: bool = False,
) -> str:
    """Carry one command out.

    Args:
        settings: where the gateway is, and the key.
        command: ``nodes``, ``explain``, ``kick``, ``drain`` or ``undrain``.
        of: the user, or the node.
        url: where the gateway is; None for what the settings say.
        tenant: whose user; None for the default one.
        as_json: whether to print what the API says.
        wait: of ``drain``, seconds until the node's clients are to have gone; None waits for nobody.
        force: of ``drain``, whether also where no other node takes clients.

    Returns:
        What to print.

    Raises:
        ConfigurationError: there is no key, or the address is none.
        CommandError: it could not be done.
    """
    api = API(settings, url, tenant)
    user = f"/api/users/{quote(of, safe='')}"
    asked = _drain(api, of, wait, force=force) if command == "drain" else _COMMANDS[command](api, of, user)
    words = _WORDS[command]
    said = asyncio.run(asked)
    return json.dumps(said, indent=2, ensure_ascii=False) if as_json else words(said, of)


async def _drain(api: API, node: str, wait: float | None, *, force: bool) -> Any:
    forced = {"force": "true"} if force else {}
    said = await api.call("POST", f"/api/admin/nodes/{quote(node, safe='')}/drain", **forced)
    if wait is None:
        return said
    deadline = asyncio.get_running_loop().time() + wait
    while True:
        known = {each["id"]: each["report"] for each in (await api.call("GET", "/api/admin/nodes"))["nodes"]}
        if node not in known or (known[node] is not None and not known[node]["connections"]):
            return said | {"connections": 0}
        if asyncio.get_running_loop().time() >= deadline:
            left = "an unknown number of" if known[node] is None else known[node]["connections"]
            raise CommandError(f"after {wait:g} s {node} still has {left} connections; it goes on draining")
        await asyncio.sleep(POLL)


# Words for people


def _nodes(said: Any, _of: str) -> str:
    heads = ("NODE", "STATE", "CONNECTIONS", "USERS", "LEASE", "LOG LAG", "CLOCK", "WEBHOOKS", "UP", "VERSION")
    here = next((inert(node["id"]) for node in said["nodes"] if node["here"]), "the one that was asked")
    differ = [
        f"{inert(node['id'])} has other settings than {here}: {', '.join(map(inert, node['differs']))}; set them alike"
        for node in said["nodes"]
        if node.get("differs")
    ]
    return "\n".join([table(heads, [_node(node, said["timestamp"]) for node in said["nodes"]]), *differ])


def _node(node: Any, now: str) -> tuple[str, ...]:
    lease = "none" if node["leaseUntil"] is None else _left(between(now, node["leaseUntil"]))
    report = node["report"]
    name = node["id"]
    if report is None:
        return (name, "silent", "", "", lease, "", "", "", "", "")
    state = "draining" if report["draining"] else "serving"
    if report["storeAway"] is not None:
        state += ", store away"
    return (
        name,
        state,
        str(report["connections"]),
        str(report["users"]),
        lease,
        "" if report["logLag"] is None else duration(report["logLag"]),
        f"{report['clockOffset']:+.3f} s",
        _webhooks(report["webhooks"]),
        duration(max(0, between(report["startedAt"], now))),
        report["version"] + ("" if report["compiled"] else ", not compiled"),
    )


def _webhooks(waiting: Any) -> str:
    if waiting is None:
        return ""
    return ", ".join(
        f"{each['endpoint']}: {each['waiting']} wait"
        + (f", for {duration(each['lag'])}" if each["waiting"] else "")
        + ("" if each["stopped"] is None else ", stopped")
        for each in waiting
    )


def _left(seconds: float) -> str:
    return duration(seconds) if seconds > 0 else "ran out"


def _explained(said: Any, _of: str) -> str:
    status = said["status"]
    text = "" if not status["statusText"] else f' "{inert(status["statusText"])}"'
    active = "never" if status["lastActive"] is None else status["lastActive"]
    parts = [
        f"{inert(status['userId'])}: {status['status']}{text}, version {status['version']}, last active {active}",
        f"because: {inert(said['because'])}",
    ]
    for name, words in (("graceUntil", "the grace runs until"), ("ttlUntil", "held by heartbeats until")):
        if said[name] is not None:
            parts.append(f"{words} {said[name]}")
    if said["connections"]:
        parts += ["", _columns(_CONNECTION, said["connections"])]
    if said["leases"]:
        parts += ["", table(("LEASE OF", "UNTIL"), list(said["leases"].items()))]
    if said["transitions"]:
        parts += ["", _columns(_TRANSITION, said["transitions"])]
    return "\n".join(parts)


_CONNECTION = {
    "CONNECTION": "id",
    "NODE": "node",
    "DOOR": "door",
    "SINCE": "connectedAt",
    "LAST ACTIVE": "lastActive",
    "PAGE": "page",
    "USER AGENT": "userAgent",
}
_TRANSITION = {"VERSION": "version", "AT": "timestamp", "WAS": "was", "BECAME": "status", "BECAUSE": "reason"}


def _columns(names: dict[str, str], things: list[Any]) -> str:
    """A table of things, by the heads of its columns and what of each thing is in them."""
    return table(
        list(names), [["" if each[name] is None else str(each[name]) for name in names.values()] for each in things]
    )


def _kicked(said: Any, user: str) -> str:
    closed = said["closed"]
    if not closed:
        return f"{inert(user)} had no connection"
    return f"closed {closed} connection{'s' if closed != 1 else ''} of {inert(user)}"


def _drained(said: Any, _of: str) -> str:
    node = inert(said["node"])
    if not said["connections"]:
        return f"{node} is drained: it has no connections, and takes none until it is undrained, or restarted"
    return (
        f"{node} drains: {said['connections']} connections go to other nodes, and it takes none until it is undrained,"
        " or restarted"
    )


def _undrained(said: Any, _of: str) -> str:
    return f"{inert(said['node'])} takes clients, and has {said['connections']} connections"


_COMMANDS: dict[str, Callable[[API, str, str], Coroutine[Any, Any, Any]]] = {
    "nodes": lambda api, _of, _user: api.call("GET", "/api/admin/nodes"),
    "explain": lambda api, _of, user: api.call("GET", f"{user}/explain"),
    "kick": lambda api, _of, user: api.call("DELETE", f"{user}/connections"),
    "undrain": lambda api, node, _user: api.call("POST", f"/api/admin/nodes/{quote(node, safe='')}/undrain"),
}
"""What each asks that asks once: with the API, the user or node, and the path of the user."""

_WORDS: dict[str, Callable[[Any, str], str]] = {
    "nodes": _nodes,
    "explain": _explained,
    "kick": _kicked,
    "drain": _drained,
    "undrain": _undrained,
}
"""What is printed of what was said, of the user or node."""
