"""``python -m gateway doctor``: what is wrong where a gateway is to run, and what to change."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import Counter
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from gateway.errors import ConfigurationError
from gateway.operators.doctor_reach import examine_reach
from gateway.operators.doctor_redis import examine_redis
from gateway.operators.findings import Finding, Level, error, ok, warning
from gateway.operators.tables import inert
from gateway.parts import MIN_SECRET
from gateway.settings import Settings
from gateway.version import COMPILED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import SecretStr

CONNECTIONS = 10_000
"""How many connections a node is to hold where nobody says."""

OTHER_FILES = 256
"""Descriptors that a node has open besides those of its clients: Redis, webhooks, its log, what listens."""

MIN_KEY = 16
"""Characters that a service key should have."""

DISTINCT = 8
"""Characters that differ, which a random key of that length has."""

ANSWER = 3.0
"""Seconds that whatever has the port may take to say that it is a gateway."""

_MAKES_ONE = "openssl rand -hex 32 makes one"

DEFAULTS = frozenset(
    {"secret", "app-secret", "app-key", "changeme", "change-me", "change_me", "password", "test", "dev", "key", "admin"}
    | {
        "your-secret",
        "your-secret-key",
        "your-256-bit-secret",
        "your_jwt_secret",
        "jwt-secret",
        "jwt_secret",
        "mysecret",
    }
    | {"a-string-secret-at-least-256-bits-long", "secretsecretsecretsecretsecretsecret", "s3cr3t", "supersecret"}
    | {
        "super-secret",
        "supersecretkey",
        "service-key",
        "api-key",
        "default",
        "example",
        "123456",
        "12345678",
        "0123456789",
    }
)
"""Keys out of examples, which everybody knows; as they are in small letters."""


def examine(connections: int = CONNECTIONS, **given: Any) -> list[Finding]:
    """Look at everything.

    Args:
        connections: how many one node is to hold.
        given: settings that the command line has, in place of those of the environment.
    """
    try:
        settings = Settings.load(**given)
    except ConfigurationError as problem:
        advice = "set them right, in the environment or in .env; docs/reference/settings.md has what each takes"
        return [error("settings", line, advice) for line in str(problem).splitlines()]
    found = [ok("settings", "each is what its variable takes")]
    found += [warning("settings", line, "set the right name, or remove it") for line in settings.strangers()]
    found += examine_keys(settings)
    found += asyncio.run(_examine_around(settings))
    return [*found, *examine_files(connections), *examine_install(settings)]


async def _examine_around(settings: Settings) -> list[Finding]:
    around = (examine_redis(settings), examine_port(settings.host, settings.port), examine_reach(settings))
    return [finding for found in await asyncio.gather(*around) for finding in found]


# Keys


def examine_keys(settings: Settings) -> list[Finding]:
    """Look at keys that can be guessed, and at what is open to everyone."""
    found = [*_weak(settings)]
    found += _shared(settings)
    if not settings.service_api_keys:
        found.append(
            warning(
                "keys",
                "SERVICE_API_KEYS is empty: no backend, and no command here, can ask the gateway",
                f"set one: {_MAKES_ONE}",
            )
        )
    if settings.dev:
        found.append(_development(settings))
    if not settings.jwt_require_exp:
        found.append(
            warning(
                "keys",
                "JWT_REQUIRE_EXP is false: a token that was stolen is good for ever",
                "have tokens expire, and leave it true",
            )
        )
    if "*" in settings.cors_allowed_origins:
        found.append(
            warning(
                "keys",
                "CORS_ALLOWED_ORIGINS is *: any page may connect, with a token it has",
                "name the origins of your own pages",
            )
        )
    return found or [ok("keys", "none can be guessed by what is known of it")]


def weakness(key: str, length: int) -> str | None:
    """Why a key can be guessed; None where nothing says that it can.

    Args:
        key: which is not in what is returned.
        length: bytes that it should have.
    """
    if key.strip().lower() in DEFAULTS:
        return "is one out of an example, which everybody knows"
    if len(key.encode()) < length:
        return f"can be guessed: it has fewer than {length} bytes"
    if len(Counter(key)) < DISTINCT:
        return f"can be guessed: it has {len(Counter(key))} different characters"
    return None


def _weak(settings: Settings) -> Iterator[Finding]:
    """Keys that can be guessed."""
    named: list[tuple[str, SecretStr | None, int]] = [
        ("JWT_SECRET", settings.jwt_secret, MIN_SECRET),
        ("PUSHER_APP_SECRET", settings.pusher_app_secret, MIN_SECRET),
        ("ADMIN_UI_PASSWORD", settings.admin_ui_password, MIN_KEY),
    ]
    for name, keys in (
        ("SERVICE_API_KEYS", settings.service_api_keys),
        ("SERVICE_API_KEYS_READONLY", settings.service_api_keys_readonly),
    ):
        named += [(f"number {number} of {name}", key, MIN_KEY) for number, key in enumerate(keys, 1)]
    for name, key, length in named:
        if key is not None and (why := weakness(key.get_secret_value(), length)):
            yield error("keys", f"{name} {why}", f"set another, the same on every node: {_MAKES_ONE}")


def _shared(settings: Settings) -> list[Finding]:
    """Keys that are one: whoever learns the one has the other."""
    named: list[tuple[str, SecretStr | None]] = [
        ("JWT_SECRET", settings.jwt_secret),
        ("PUSHER_APP_SECRET", settings.pusher_app_secret),
        ("PRESENCE_WEBHOOK_SECRET", settings.presence_webhook_secret),
    ]
    named += [(f"number {number} of SERVICE_API_KEYS", key) for number, key in enumerate(settings.service_api_keys, 1)]
    known: dict[str, str] = {}
    found = []
    for name, key in named:
        if key is None:
            continue
        other = known.setdefault(key.get_secret_value(), name)
        if other != name:
            found.append(error("keys", f"{name} is the same as {other}", f"set another for each: {_MAKES_ONE}"))
    return found


def _development(settings: Settings) -> Finding:
    """What is to be said of development mode, which belongs on the machine of whoever tries it out."""
    try:
        near = ip_address(settings.host).is_loopback
    except ValueError:
        near = settings.host == "localhost"
    why = [
        *([] if near else [f"HOST is {inert(settings.host)}"]),
        *([] if settings.redis is None else ["REDIS_URL is set"]),
    ]
    if why:
        return error(
            "keys",
            f"development mode (PRESENCE_DEV, --dev) where {' and '.join(why)}: it looks like production,"
            " and whoever is on this machine gets a token for any user",
            "leave PRESENCE_DEV out, and set JWT_SECRET",
        )
    return warning(
        "keys",
        "development mode: whoever is on this machine gets a token for any user",
        "in production leave PRESENCE_DEV out",
    )


# Where it runs


async def examine_port(host: str, port: int) -> list[Finding]:
    """Look whether the port is free, or a gateway's."""
    where = f"{inert(host)}:{port}"
    if port == 0:
        return [ok("port", "any free one")]
    try:
        listening = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)
    except OSError as problem:
        if await _is_a_gateway(host, port):
            return [ok("port", f"a gateway listens on {where} already")]
        reason = inert(problem.strerror or str(problem))
        return [
            error(
                "port",
                f"{where} cannot be listened on: {reason}",
                "stop what has it, or set HOST and PORT to what this machine has, and what is free",
            )
        ]
    listening.close()
    await listening.wait_closed()
    return [ok("port", f"{where} is free")]


async def _is_a_gateway(host: str, port: int) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what is listened on, not by us
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/health/live"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER)) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            said = await response.json(content_type=None)
    except (aiohttp.ClientError, OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("status") == "ok"


def examine_files(connections: int, limits: tuple[int, int] | None = None) -> list[Finding]:
    """Look whether so many connections may be open at once.

    Args:
        connections: how many.
        limits: of open files, the soft and the hard one; None for those of this process, which a gateway that is
            started from here has, too.
    """
    if limits is None:
        if sys.platform == "win32":
            return [ok("files", "Windows sets no limit to a process's connections")]
        import resource  # noqa: PLC0415 - which Windows has not

        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        limits = tuple(sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in limits)  # type: ignore[assignment]  # two
    soft, hard = limits
    needed = connections + OTHER_FILES
    if soft >= needed:
        return [ok("files", f"{soft} may be open, enough for {connections} connections")]
    said = f"{soft} files may be open (RLIMIT_NOFILE), and {connections} connections take {needed}"
    advice = f"ulimit -n {needed} before the start, or LimitNOFILE={needed} in its systemd unit"
    if hard < needed:
        advice += f"; the hard limit is {hard}, which root raises: /etc/security/limits.conf, or --ulimit in Docker"
    return [error("files", said, advice)]


def examine_install(settings: Settings) -> list[Finding]:
    """Look how the gateway is installed here, and how that will be felt."""
    found = []
    if not COMPILED:
        found.append(
            warning(
                "install",
                "the gateway runs interpreted, and is slower for it",
                "install it where there is a C compiler: pip install --force-reinstall presence-gateway",
            )
        )
    if settings.gateway_engine == "fast" and find_spec("picows") is None:
        found.append(
            warning(
                "install",
                "picows is not installed: WebSockets are served by aiohttp, and cost more",
                "pip install picows",
            )
        )
    if socket.has_ipv6 is False:  # pragma: no cover - no such Python is at hand
        found.append(warning("install", "this Python has no IPv6", "clients that have nothing else cannot connect"))
    return found or [
        ok("install", "compiled, with the fast engine" if settings.gateway_engine == "fast" else "compiled")
    ]


# What is printed


def is_sound(found: Sequence[Finding], *, strict: bool = False) -> bool:
    """Whether nothing is wrong; with `strict`, no warning is given either."""
    bad = {Level.ERROR, Level.WARNING} if strict else {Level.ERROR}
    return not any(each.level in bad for each in found)


def words(found: Sequence[Finding], *, as_json: bool = False, strict: bool = False) -> str:
    """What to print of it: for people, or as JSON."""
    if as_json:
        report = {"ok": is_sound(found, strict=strict), "findings": [msgspec.to_builtins(each) for each in found]}
        return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()
    lines = []
    for each in found:
        lines.append(f"{each.level.value:<8}{each.about:<9} {each.said}")
        if each.advice is not None:
            lines.append(f"{'':18}-> {each.advice}")
    levels = Counter(each.level for each in found)
    wrong = [
        f"{levels[level]} {level.value}{'s' if levels[level] > 1 else ''}"
        for level in (Level.ERROR, Level.WARNING)
        if levels[level]
    ]
    return "\n".join([*lines, "", " and ".join(wrong) if wrong else "nothing is wrong"])
