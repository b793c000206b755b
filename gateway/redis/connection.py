"""How Redis is reached: one server, a master that sentinels watch, or a cluster.

Commands go out through `pipeline`, which treats the three alike.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from redis import exceptions
from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode, PipelineCommand
from redis.asyncio.connection import AbstractConnection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.cluster import PRIMARY

if TYPE_CHECKING:
    from collections.abc import Sequence

Client: TypeAlias = "Redis | ClusterClient"
"""What `connect` makes. Replies are bytes."""


class NotServingError(exceptions.ResponseError):
    """Redis is there, and refuses: it asks for a password, cannot save, lacks replicas, or runs a long script."""


connection_errors: tuple[type[Exception], ...] = (
    exceptions.ConnectionError,  # also a wrong password, which an operator mends; data still loading; no master found
    exceptions.TimeoutError,
    OSError,  # what redis-py lets through, such as Python's own ConnectionError and TimeoutError
    exceptions.InvalidResponse,  # what answers is no Redis
    exceptions.NoPermissionError,  # the user's rights in Redis; as a wrong password
    NotServingError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,  # a master became a replica
    exceptions.ClusterError,  # a part of the cluster is down, or a replica has lost its master
    exceptions.SlotNotCoveredError,
    exceptions.AskError,  # and MovedError; like the next where a slot is on its way for longer than a command waits
    exceptions.TryAgainError,
)
"""What says that Redis cannot be reached or cannot serve now, and may later. Anything else is a mistake of ours."""

_NOT_SERVING = frozenset({"BUSY", "DENIED", "MISCONF", "NOREPLICAS", "UNBLOCKED"})
"""What replies begin with that are a `NotServingError`; redis-py has no classes for them."""

_LOST = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.InvalidResponse)
_ELSEWHERE = (exceptions.AskError, exceptions.TryAgainError)
_LATE = 0.1
"""Seconds that a loop which runs may be late to see that a time is over."""
_PAUSE = 0.05
"""Seconds between attempts at a slot that is on its way; the second is at once."""

_FORMS = (
    "takes redis://[user:password@]host:port/db, redis+sentinel://[user:password@]host:port,host:port/db/service,"
    " redis+cluster://[user:password@]host:port,host:port (rediss… for TLS) or unix://[user:password@]/path?db=0"
)
_SCHEMES = frozenset(
    {"redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"}
)
_PORTS = {"": 6379, "cluster": 6379, "sentinel": 26379}
_PARAMETERS = frozenset(
    {"client_name", "db", "health_check_interval", "max_connections", "password", "socket_keepalive", "username"}
    | {"ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname"}
    | {"ssl_ciphers", "ssl_exclude_verify_flags", "ssl_include_verify_flags", "ssl_keyfile", "ssl_min_version"}
    | {"ssl_password"}
)
"""Of redis-py's parameters, those that change nothing which callers rely on."""
_SENTINEL_PARAMETERS = {"sentinel_username": "username", "sentinel_password": "password"}


def connect(url: str, *, timeout: float) -> Client:
    """Make a client. Nothing is sent before its first command; `aclose` it at the end.

    A broken connection is made anew once, at once, so that commands do not notice that a server was restarted between
    them. A time-out is final, unless it was this process that stood still.

    Args:
        url: as `check_url` takes it.
        timeout: seconds that it may take to connect, and to be answered. A command that blocks must end before, and
            Redis may be some tenths of a second late to end it.

    Raises:
        ValueError: the URL is of no such form.
    """
    return _make(_parse(url), timeout)[0]


def check_url(url: str) -> None:
    """Refuse a URL that `connect` would refuse, and one whose certificates cannot be read.

    Raises:
        ValueError: what is wrong with it and what it takes, with nothing in it that may be secret.
    """
    connection = _make(_parse(url), timeout=1)[1]
    if isinstance(connection, SSLConnection):
        try:
            connection.ssl_context.get()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not what it should be"
            raise ValueError(f"the certificates or keys of its ssl_ parameters cannot be read: {reason}") from None


def describe(url: str) -> str:
    """The URL for a line of the log: without user, password and parameters."""
    try:
        return str(_parse(url))
    except ValueError:
        return "an unreadable URL"


async def pipeline(client: Client, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """Send commands in one round trip, each by itself, and in order.

    On a cluster, all keys must be in one slot. While that slot moves to another node, commands that have to follow it
    are done after those that have not.

    Args:
        client: what `connect` made.
        commands: name and arguments of each: text, bytes or numbers, the name in capitals. On a cluster the first one
            says where the slot is, by its first argument, or the first key of an ``EVAL…``, ``FCALL…`` or ``XREAD…``;
            one that has none, such as ``PING``, goes anywhere.

    Returns:
        The replies, as redis-py's `execute_command` has them. In the place of a command that was refused is an
        exception, which may be one of `connection_errors`.

    Raises:
        connection_errors: the connection was lost. Any of the commands may have been done; some twice, where the
            connection was made anew.
    """
    if not commands:
        return []
    loop = asyncio.get_running_loop()
    begin = loop.time()
    try:
        try:
            replies = await _send(client, commands)
        except exceptions.TimeoutError:
            if loop.time() - begin < _timeout(client) + _LATE:
                raise
            # The time-out itself came late: this process stood still, and the answer is there, or was.
            replies = await _send(client, commands)
    except exceptions.ResponseError as error:  # answers to the commands are replies: this one refused the connection
        raise exceptions.ConnectionError(str(error)) from error
    return [_named(reply) for reply in replies]


async def _send(client: Client, commands: Sequence[Sequence[Any]]) -> list[Any]:
    if isinstance(client, ClusterClient):
        return await client.send(commands)
    return await _send_to_server(client, commands)


def _timeout(client: Client) -> float:
    options = (
        client.connection_kwargs if isinstance(client, ClusterClient) else client.connection_pool.connection_kwargs
    )
    return float(options["socket_timeout"])


async def _send_to_server(client: Redis, commands: Sequence[Sequence[Any]]) -> list[Any]:
    try:
        replies = await _execute(client, commands)
    except RuntimeError:  # uvloop's word for a connection that was reset while it was idle; the others may be, too
        await _drop_idle(client)
        replies = await _execute(client, commands)
    if any(isinstance(reply, exceptions.ReadOnlyError) for reply in replies):
        # The master became a replica. Its name may lead to the new one, which only a new connection finds.
        await _drop_idle(client)
    return replies


async def _execute(client: Redis, commands: Sequence[Sequence[Any]]) -> list[Any]:
    batch = client.pipeline(transaction=False)
    for command in commands:
        batch.execute_command(*command)
    return await batch.execute(raise_on_error=False)


async def _drop_idle(client: Redis) -> None:
    await client.connection_pool.disconnect(inuse_connections=False)


_BEFORE_7 = frozenset({"READONLY", "OOM", "LOADING", "MASTERDOWN"})
"""Likewise, where a script ran into it: redis-py looks at the beginning."""


def _named(reply: Any) -> Any:
    if isinstance(reply, exceptions.ResponseError):
        if "unauthenticated" in str(reply) or str(reply).startswith("NOAUTH"):
            return NotServingError("Redis asks for a password, and the URL has none")
        # Before Redis 7, what a script ran into comes after where.
        code = str(reply).rpartition(": -")[2].partition(" ")[0]
        if code in _NOT_SERVING or (code in _BEFORE_7 and ": -" in str(reply)):
            return NotServingError(str(reply))
    return reply


def _make(address: _Address, timeout: float) -> tuple[Client, AbstractConnection]:
    """A client, and one of its connections, which is not connected."""
    settled: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 1, (exceptions.ConnectionError,)),
        # RESP3 brings nothing that is needed, and greets with commands that older servers and proxies refuse.
        "protocol": 2,
        "driver_info": None,
    }
    options = address.options | settled
    try:
        if address.kind == "cluster":
            cluster = ClusterClient(address.hosts, **options)
            connection = cluster.startup_nodes[0].acquire_connection()
            cluster.startup_nodes[0].release(connection)
            return cluster, connection
        if address.kind == "sentinel":
            sentinels = _Sentinels(address.hosts, sentinel_kwargs=address.sentinel_options | settled)
            pool: ConnectionPool = _SentinelPool(address.service, sentinels, **options)  # type: ignore[no-untyped-call]
        else:
            pool = ConnectionPool(**options)
        return Redis.from_pool(pool), pool.make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, exceptions.RedisError, exceptions.RedisClusterException):
        raise ValueError(f"{_FORMS}; this one has a parameter that does not go with the rest of it") from None


class _Sentinels(Sentinel):
    """Asks one question at a time: redis-py, asked twice at once, may forget one of the sentinels for ever."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self._asking = asyncio.Lock()

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        async with self._asking:
            found: tuple[str, int] = await super().discover_master(service_name)
            return found


class _SentinelPool(SentinelConnectionPool):
    """Closes the connections to the sentinels as well, which redis-py leaves to whoever made them."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


class ClusterClient(RedisCluster):
    """A client of a cluster that behaves as the others do.

    redis-py's own pipelines have a lost connection among the replies, and do not look where the slots are then;
    ``ASKING`` goes out on another connection than what it is for; and some redirections close every connection, also
    those in use.
    """

    ERRORS_ALLOW_RETRY = (exceptions.ConnectionError, exceptions.ClusterDownError, exceptions.SlotNotCoveredError)  # type: ignore[assignment]

    def __init__(self, hosts: Sequence[tuple[str, int]], **options: Any) -> None:
        super().__init__(startup_nodes=[ClusterNode(host, port) for host, port in hosts], **options)
        self._given = dict(self.nodes_manager.startup_nodes)
        self._timeout: float = options["socket_timeout"]

    async def initialize(self, *arguments: Any, **options: Any) -> RedisCluster:
        """Learn the nodes and their slots, once.

        Raises:
            redis.exceptions.ConnectionError: none of the nodes can be reached.
        """
        try:
            return await super().initialize(*arguments, **options)
        except exceptions.RedisClusterException as error:  # no node is there; elsewhere it says a mistake of ours
            self.nodes_manager.startup_nodes.update(self._given)
            raise exceptions.ConnectionError(str(error)) from error

    async def aclose(self) -> None:
        """Close every connection."""
        await super().aclose()
        for nodes in ("nodes_cache", "startup_nodes"):  # after an error, redis-py leaves them open
            await self.nodes_manager.aclose(nodes)

    async def send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands whose keys are in one slot; see `pipeline`."""
        await self.initialize()
        slot = self.keyslot(_first_key(commands[0]))
        batch = [PipelineCommand(position, *command) for position, command in enumerate(commands)]
        waiting, retried, loop = batch, False, asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        node, asking = self.nodes_manager.get_node_from_slot(slot), False
        for attempt in count():
            lost = await _send_to_node(node, waiting, asking=asking)
            waiting = [command for command in waiting if isinstance(command.result, (*_LOST, *_ELSEWHERE))]
            if lost is not None:
                await self._look_again(node)
                if retried or isinstance(lost, exceptions.TimeoutError):
                    raise lost
                node, asking, retried = self.nodes_manager.get_node_from_slot(slot), False, True
            elif waiting and loop.time() < deadline:
                await asyncio.sleep(_PAUSE if attempt else 0)
                node, asking = await self._follow(node, [command.result for command in waiting], asking=asking)
            else:
                break
        return [command.result for command in batch]

    async def _look_again(self, node: ClusterNode) -> None:
        """After a connection to a node was lost: ask where the slots are now, and have every connection made anew."""
        try:
            async with asyncio.timeout(self._timeout):
                await self.nodes_manager.initialize(last_failed_node_name=node.name)
        except (exceptions.RedisClusterException, TimeoutError):
            # The nodes that are known may be gone, and the URL's names lead to others by now.
            self.nodes_manager.startup_nodes.update(self._given)

    async def _follow(self, node: ClusterNode, refusals: Sequence[Any], *, asking: bool) -> tuple[ClusterNode, bool]:
        """Which node to turn to after refusals, and whether to ask it for a slot that is not its own yet."""
        nodes = self.nodes_manager
        told = next((refusal for refusal in refusals if isinstance(refusal, exceptions.AskError)), None)
        if told is None:  # of each command, some keys have moved and others have not
            return node, asking
        if isinstance(told, exceptions.MovedError):
            await nodes.move_slot(told)
            return nodes.get_node_from_slot(told.slot_id), False
        importing = self.get_node(told.host, told.port)
        if importing is None:  # it has no slot at all yet
            importing = ClusterNode(told.host, told.port, PRIMARY, **self.connection_kwargs)
            nodes.set_nodes(nodes.nodes_cache, {importing.name: importing})
        return importing, True


async def _send_to_node(node: ClusterNode, commands: Sequence[PipelineCommand], *, asking: bool) -> Exception | None:
    """Send commands, each of which has its result then; return how the connection was lost, None if it was not."""
    sent = [part for command in commands for part in (*([PipelineCommand(0, "ASKING")] if asking else []), command)]
    try:
        await node.execute_pipeline(sent)
    except (*_LOST, RuntimeError) as error:  # as in `_send_to_server`
        lost = error if isinstance(error, _LOST) else exceptions.ConnectionError(str(error))
        for command in commands:
            command.result = lost
    return next((command.result for command in commands if isinstance(command.result, _LOST)), None)


def _first_key(command: Sequence[Any]) -> Any:
    name = command[0]
    position = 1
    if name.startswith(("EVAL", "FCALL")):
        position = 3
    elif name.startswith("XREAD"):
        position = command.index("STREAMS") + 1
    return command[position] if position < len(command) else ""


@dataclass(frozen=True)
class _Address:
    """A URL, taken apart."""

    scheme: str
    kind: str
    """``sentinel``, ``cluster``, or nothing for one server."""
    hosts: tuple[tuple[str, int], ...]
    """Empty for a Unix socket."""
    service: str
    """What the sentinels call the master; empty for the others."""
    options: dict[str, Any]
    """Arguments of redis-py for a server that has data; those of `hosts` only where it is the only one."""
    sentinel_options: dict[str, Any]
    """Those for a sentinel."""

    def __str__(self) -> str:
        if not self.hosts:
            return f"{self.scheme}://{self.options['path']}"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        database = "" if self.kind == "cluster" else f"/{self.options.get('db', 0)}"
        return f"{self.scheme}://{hosts}{database}" + (f"/{self.service}" if self.service else "")


class _Problem(Exception):  # noqa: N818 - it never leaves this file
    """What is wrong with a URL, in words that hold nothing secret."""


def _parse(url: str) -> _Address:
    try:
        return _take_apart(url)
    except _Problem as error:
        problem = str(error)
    except ValueError:  # its words may hold a part of the password
        problem = "this one cannot be read"
    raise ValueError(f"{_FORMS}; {problem}")


def _take_apart(url: str) -> _Address:
    parts = urlsplit(url)
    transport, _, kind = parts.scheme.partition("+")
    if parts.scheme not in _SCHEMES:
        raise _Problem("this one begins otherwise")
    if "#" in url or "@" in parts.path + parts.query:
        raise _Problem("in user, password and parameters, write / as %2F, ? as %3F, # as %23 and @ as %40")
    names = {name for name, _value in parse_qsl(parts.query, strict_parsing=True)} if parts.query else set()
    if strangers := names - _PARAMETERS - (_SENTINEL_PARAMETERS.keys() if kind == "sentinel" else set()):
        raise _Problem(f"this one has a parameter that is not known, {min(strangers)}")

    user, at, netloc = parts.netloc.rpartition("@")
    if transport == "unix":
        if netloc or not parts.path:
            raise _Problem("this one has no path, or a host")
        return _Address(parts.scheme, kind, (), "", _options(url), {})

    hosts = tuple(_host(part, _PORTS[kind]) for part in netloc.split(","))
    if not kind and len(hosts) > 1:
        raise _Problem("this one has several hosts, which are for redis+sentinel:// and redis+cluster://")
    database, service = _database_and_service(kind, parts.path)
    # redis-py reads the rest, as if it were for one server.
    options = _options(urlunsplit((transport, user + at + "host", database, parts.query, "")))
    sentinel_options = {given: options.pop(name) for name, given in _SENTINEL_PARAMETERS.items() if name in options}
    del options["host"]
    if kind:
        options["ssl"] = options.pop("connection_class", None) is not None
        sentinel_options |= {name: value for name, value in options.items() if name.startswith("ssl")}
    else:
        options["host"], options["port"] = hosts[0]
    return _Address(parts.scheme, kind, hosts, service, options, sentinel_options)


def _database_and_service(kind: str, path: str) -> tuple[str, str]:
    database, *services = [unquote(part) for part in path.split("/") if part] or [""]
    if len(services) != (kind == "sentinel"):
        raise _Problem("this one has too little or too much after its hosts")
    if database and not (database.isascii() and database.isdigit()):
        raise _Problem("the database is a number")
    if kind == "cluster" and database not in {"", "0"}:
        raise _Problem("a cluster has no database but 0")
    return database, services[0] if services else ""


def _host(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise _Problem("this one lacks a host")
    try:
        return unquote(parts.hostname), parts.port or default_port
    except ValueError:
        raise _Problem("a port is a number up to 65535") from None


def _options(url: str) -> dict[str, Any]:
    try:
        return dict(parse_url(url))
    except ValueError:
        raise _Problem("this one has a parameter with a wrong value") from None
