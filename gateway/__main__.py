"""The command line: ``python -m gateway serve|export|token|webhooks|schema|doctor``, and what asks one that runs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING

if sys.platform != "win32":
    import uvloop
import structlog
from aiohttp import web

from gateway.access.auth import issue_token
from gateway.app import Gateway, create_app
from gateway.errors import CommandError, ConfigurationError
from gateway.export.command import export
from gateway.operators import commands as operators
from gateway.operators import doctor
from gateway.parts import weakness_of
from gateway.presence.clock import SteadyClock
from gateway.schema.asyncapi import as_json
from gateway.schema.typescript import typescript
from gateway.settings import Settings
from gateway.telemetry import configure_logs
from gateway.version import COMPILED, __version__
from gateway.webhooks import command as webhooks
from gateway.wire import is_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_log = structlog.get_logger("gateway")

COLLECT_AFTER = 20_000
"""How many more objects than before there are until the youngest are looked through; Python's default is 700."""

BACKLOG = 4096
"""TCP connections that the system takes in before they are accepted: all of a node's clients may come back at once, and
each that finds no place tries again only after a second, and then after two."""

MAX_TTL = 3_153_600_000
"""Seconds: a hundred years."""

ACCEPTORS = 3
"""How many connections are accepted in one turn of the loop. Of each socket that listens libuv accepts one; when all
come at once a turn is long, and the rest would wait with the system, unseen, for longer than their time-outs. Each is
woken by every connection, most of them for nothing, which is the kernel's work: with three, 10,000 who come at once are
let in as soon as with eight."""


_VARIABLES = (
    "All else is set by environment variables, or a .env file here: see .env.example, docs/reference/settings.md."
)


def main(arguments: Sequence[str] | None = None, *, make: Callable[[Settings], Gateway] = Gateway) -> int:
    """Run one command.

    Args:
        arguments: of the command line; None for the process's own.
        make: makes the gateway that is served, for one that has a visibility rule, or hooks.

    Returns:
        The exit status: 0 done, 1 what was asked for could not be done or is not sound, 2 wrongly configured.
    """
    options = _parser(make).parse_args(arguments)
    try:
        return int(options.command(options))
    except ConfigurationError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    except CommandError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1


def _parser(make: Callable[[Settings], Gateway]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gateway",
        description="The server that knows, in real time, who is online.",
        epilog=_VARIABLES,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="run the gateway",
        description="Run the gateway until SIGTERM or SIGINT. JWT_SECRET, or another key to verify tokens with, is to"
        " be set, but for --dev.",
        epilog=_VARIABLES,
    )
    serve.add_argument("--host", help="the address to listen on (HOST, 127.0.0.1)")
    serve.add_argument("--port", type=int, help="the port to listen on (PORT, 3000); 0 takes a free one")
    serve.add_argument(
        "--dev",
        action="store_true",
        default=None,
        help="development mode: needs no configuration, and gives tokens to this machine at /dev/token",
    )
    serve.set_defaults(command=partial(_serve, make))

    exporting = commands.add_parser(
        "export",
        help="export presence to EXPORT_DATABASE_URL, in a process of its own",
        description="Write who was online when to EXPORT_DATABASE_URL, until SIGTERM or SIGINT, apart from the gateways"
        " whose REDIS_URL and REDIS_PREFIX it has.",
        epilog=_VARIABLES,
    )
    exporting.set_defaults(command=_export)

    token = commands.add_parser(
        "token",
        help="print a token signed with JWT_SECRET",
        description="Print a token that a gateway with the same JWT_SECRET takes, to try it with; in production a"
        " backend signs them.",
    )
    token.add_argument("user", metavar="USER", help="the user id: the token's sub")
    token.add_argument("--tenant", help="the tenant; the default one where none is named")
    token.add_argument("--name", help="the name that others see")
    token.add_argument("--role", help="the role, such as admin")
    token.add_argument("--ttl", type=float, default=3600.0, help="seconds until it expires (3600)")
    token.set_defaults(command=_token)

    about = "list webhooks that failed, and send them again (with REDIS_URL)"
    hooks = commands.add_parser("webhooks", help=about, description=_sentence(about))
    actions = hooks.add_subparsers(required=True, metavar="ACTION", dest="action")
    for name, about in (
        ("list", "show dead letters, and what waits for each endpoint"),
        ("replay", "send dead letters again, under the same webhook-id"),
        ("resume", "send to an endpoint again that had answered 410"),
        ("forget", "let go of all that is kept for an endpoint that is configured no more"),
    ):
        action = actions.add_parser(name, help=about, description=_sentence(about))
        which = "of this endpoint only; default is PRESENCE_WEBHOOK_URL"
        action.add_argument("--endpoint", metavar="NAME", help=which, required=name == "forget")
        if name == "forget":
            action.add_argument("--force", action="store_true", help="also where no endpoint is configured here")
        if name == "replay":
            action.add_argument("ids", nargs="*", metavar="ID", help="the webhook-id, as list shows it")
            action.add_argument("--all", action="store_true", help="all of them")
    hooks.set_defaults(command=_webhooks)
    _add_schema(commands)
    _add_operators(commands)
    return parser


def _add_schema(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command that describes the events."""
    about = "print what describes the events to those who write clients"
    schema = commands.add_parser("schema", help=about, description=_sentence(about))
    kinds = schema.add_subparsers(required=True, metavar="KIND")
    for name, said, write in (
        ("types", "types for socket.io-client in TypeScript: static/presence-events.d.ts", typescript),
        ("asyncapi", "an AsyncAPI 3.0 document: static/asyncapi.json, and /asyncapi.json of a gateway", as_json),
    ):
        kind = kinds.add_parser(name, help=said, description=_sentence(said))
        kind.set_defaults(command=partial(_print, write))


def _add_operators(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands that ask how everything is."""
    examined = commands.add_parser(
        "doctor",
        help="look for what is wrong where a gateway is to run",
        description="Look at the settings, the keys, Redis, the port and the limit of open files, and say what to"
        " change. The exit status is 1 where something is wrong.",
        epilog=_VARIABLES,
    )
    examined.add_argument("--host", help="the address that it is to listen on (HOST)")
    examined.add_argument("--port", type=int, help="the port that it is to listen on (PORT)")
    most = doctor.CONNECTIONS
    examined.add_argument("--connections", type=int, default=most, help=f"how many one node is to hold ({most})")
    examined.add_argument("--strict", action="store_true", help="exit with 1 for a warning, too")
    examined.add_argument("--json", action="store_true", help="print JSON")
    examined.set_defaults(command=_doctor)

    for name, what, about in (
        ("nodes", None, "show the nodes of a gateway that runs"),
        ("explain", "USER", "say why a user has the status they have"),
        ("kick", "USER", "close a user's connections on every node"),
        ("drain", "NODE", "have a node take no more clients, and let those it has go to others"),
        ("undrain", "NODE", "have a node that was drained take clients again"),
    ):
        asking = commands.add_parser(
            name,
            help=about,
            description=f"{_sentence(about)} It is asked over HTTP, with the service key in GATEWAY_API_KEY, or the"
            " first of SERVICE_API_KEYS.",
            epilog=_VARIABLES,
        )
        if what is not None:
            asking.add_argument("of", metavar=what, help="the user id" if what == "USER" else "its name, of `nodes`")
        asking.add_argument("--url", help="where the gateway is (GATEWAY_URL, or HOST and PORT on this machine)")
        if what == "USER":
            asking.add_argument("--tenant", help="the tenant; the default one where none is named")
        if name == "drain":
            asking.add_argument("--wait", type=float, metavar="S", help="wait so many seconds for its clients to go")
            asking.add_argument("--force", action="store_true", help="also where no other node takes clients")
        asking.add_argument("--json", action="store_true", help="print what the HTTP API says")
        asking.set_defaults(command=partial(_ask, name))


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _serve(make: Callable[[Settings], Gateway], options: argparse.Namespace) -> int:
    given = {"host": options.host, "port": options.port, "dev": options.dev}
    settings = Settings.load(**{name: value for name, value in given.items() if value is not None})
    _begin_to_log(settings)
    gateway = make(settings)
    _calm_the_collector()
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(_run_until_stopped(gateway, settings))
    return 0


def _begin_to_log(settings: Settings) -> None:
    configure_logs(settings.log_format, settings.log_level)
    for sentence in settings.strangers():
        _log.warning(sentence)


def _calm_the_collector() -> None:
    """Let the garbage collector look less often at what lives long.

    A connection is some dozens of objects that stay, and no cycle ends with it: by its defaults Python would look
    through all connections again and again while they come (`benchmarks/profile.md`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 50)


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":  # which uvloop does not run on
        return None
    return uvloop.new_event_loop


async def _run_until_stopped(gateway: Gateway, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, wait until no new clients are sent here, then drain within the time set."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopped.set)
    runner = gateway.runner(
        create_app(gateway),
        access_log=None,  # its request lines would hold tokens
        tcp_keepalive=False,  # whoever stays is pinged, or has that time-out
        shutdown_timeout=settings.shutdown_timeout / 2,
    )
    await runner.setup()
    try:
        try:
            await _listen(runner, settings.host, settings.port)
        except OSError as error:
            where, why = f"{_for_url(settings.host)}:{settings.port}", _reason(error)
            raise ConfigurationError(
                f"cannot listen on {where}: {why}; HOST and PORT, or --host and --port, say where to listen"
            ) from None
        host, port = runner.addresses[0][:2]
        _log.info("listening", address=f"http://{_for_url(host)}:{port}", version=__version__, compiled=COMPILED)
        if settings.dev:
            _log.info("development mode", page=f"http://127.0.0.1:{port}/test-presence.html")
        await stopped.wait()
        gateway.leave()
        if settings.drain_delay:
            await _wait_to_drain(stopped, settings.drain_delay)
    finally:
        try:
            async with asyncio.timeout(settings.shutdown_timeout):
                await gateway.drain()  # while it still listens, so that whoever asks is told why
                await runner.cleanup()
        except TimeoutError:
            _log.warning("clients took too long to leave; cut off", limit=settings.shutdown_timeout)
    _log.info("stopped")


async def _wait_to_drain(stopped: asyncio.Event, delay: float) -> None:
    """Serve on until balancers have seen that this node goes, or somebody asks a second time."""
    _log.info("not ready any more; draining soon", delay=delay)
    stopped.clear()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopped.wait(), delay)


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    """Serve at an address.

    Raises:
        OSError: it cannot be had.
    """
    site = web.TCPSite(runner, host, port, backlog=BACKLOG)
    await site.start()
    server = site._server  # noqa: SLF001 - asyncio has a public way to its sockets, aiohttp none to it
    if _fast_loop() is None or server is None:  # asyncio's own accepts all who are there
        return
    for listening in getattr(server, "sockets", ()):
        for _ in range(ACCEPTORS - 1):
            again = socket.socket(fileno=os.dup(listening.fileno()))
            await web.SockSite(runner, again, backlog=BACKLOG).start()


def _reason(error: OSError) -> str:
    """Why, in the system's words: asyncio's tell the address again."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)


def _for_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _export(_options: argparse.Namespace) -> int:
    settings = Settings.load(dev=True)  # it verifies no tokens
    _begin_to_log(settings)
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(export(settings))
    return 0


def _token(options: argparse.Namespace) -> int:
    settings = Settings.load(dev=True)  # so that a missing key is said in this command's own words
    if settings.jwt_secret is None:
        raise ConfigurationError(
            "JWT_SECRET is not set: it is to be what the gateway has; with --dev that has none, and gives tokens at"
            " /dev/token?user=NAME"
        )
    if not is_id(options.user):
        raise ConfigurationError("USER takes 1 to 128 characters without control characters")
    if options.tenant is not None and not is_id(options.tenant):
        raise ConfigurationError("--tenant takes 1 to 128 characters without control characters")
    if not 0 < options.ttl <= MAX_TTL:
        raise ConfigurationError(f"--ttl takes a number of seconds, more than 0, {MAX_TTL} at the most")
    claims = {"name": options.name, "role": options.role, settings.jwt_tenant_claim: options.tenant}
    secret = settings.jwt_secret.get_secret_value()
    if warning := weakness_of(secret):
        print(f"gateway: {warning}", file=sys.stderr)
    print(issue_token(settings, secret, options.user, now=SteadyClock()(), ttl=options.ttl, claims=claims))
    return 0


def _print(write: Callable[[], str], _options: argparse.Namespace) -> int:
    print(write(), end="")
    return 0


def _webhooks(options: argparse.Namespace) -> int:
    settings = Settings.load(dev=True)  # which asks for no key to verify tokens with
    ids, everything = getattr(options, "ids", ()), getattr(options, "all", False)
    asked = webhooks.run(
        settings,
        options.action,
        ids,
        everything=everything,
        endpoint=options.endpoint,
        force=getattr(options, "force", False),
    )
    print(asyncio.run(asked))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    given = {name: value for name, value in (("host", options.host), ("port", options.port)) if value is not None}
    if options.connections < 1:
        raise ConfigurationError("--connections takes a whole number, 1 at least")
    found = doctor.examine(options.connections, **given)
    print(doctor.words(found, as_json=options.json, strict=options.strict))
    return 0 if doctor.is_sound(found, strict=options.strict) else 1


def _ask(command: str, options: argparse.Namespace) -> int:
    settings = Settings.load(dev=True)  # it verifies no tokens
    of, tenant = getattr(options, "of", ""), getattr(options, "tenant", None)
    wait = getattr(options, "wait", None)
    if command in {"explain", "kick"} and not is_id(of):
        raise ConfigurationError("USER takes 1 to 128 characters without control characters")
    if tenant is not None and not is_id(tenant):
        raise ConfigurationError("--tenant takes 1 to 128 characters without control characters")
    if wait is not None and not 0 <= wait <= MAX_TTL:
        raise ConfigurationError("--wait takes a number of seconds")
    force = getattr(options, "force", False)
    said = operators.run(
        settings, command, of=of, url=options.url, tenant=tenant, as_json=options.json, wait=wait, force=force
    )
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
