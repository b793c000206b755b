"""The store in Redis, for any number of nodes: one Lua script per command, under ``lua/``.

The scripts repeat the rules of presence in Lua, because a command must be one atomic step in Redis. One conformance
suite and one state machine test both adapters, so that the two cannot drift apart.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from redis.exceptions import ResponseError

from gateway.errors import LeaseLostError, LogTrimmedError
from gateway.presence.encoding import (
    STATUS_FIELDS,
    both_of,
    decode_body,
    fields_of,
    session_of,
    status_of,
    transition_at,
)
from gateway.presence.model import (
    NOBODY,
    Choice,
    Chosen,
    Connection,
    Ending,
    Entry,
    OnlineSession,
    Retention,
    UserStatus,
)
from gateway.presence.store import OUTAGE, RETURNING, Commit, Explanation, Lease, Snapshot, Store
from gateway.presence.view import View
from gateway.redis.commands import Call, Commands, Script, pairs_of
from gateway.redis.keys import base_of, outbox_key, queue_key, user_key, user_of
from gateway.redis.stream import Stream, to_id, to_position

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.presence.model import Beat, Timing
    from gateway.redis.connection import Client

_log = structlog.get_logger(__name__)

LOG_LENGTH = 100_000
"""Entries kept, about: minutes of a busy site, for a node that was cut off. Some 40 MB in Redis."""

CHUNK = 200
"""Users that one script changes at the most. It takes a few milliseconds, in which Redis serves nobody else."""

SWEEPS = 20
"""Such scripts in one sweep at the most. Whatever else is due waits for the next sweep, so that leases are renewed."""

UNWRITTEN_AFTER = 3_600_000
"""Milliseconds for which the outbox is still written after the last node that sends webhooks was heard of."""

RECENT = 10
"""Transitions that are kept of a user, as in ``rules.lua``."""

SCAN = 1000
"""Users read in one step of a snapshot."""

SNAPSHOTS = 3
"""Attempts to take a snapshot and what the log says meanwhile, which may be lost then. After the last one, a snapshot
is returned as it was read: entries of a newer version cannot be taken in at all."""

BEATS = 500
"""Beats in one script at the most."""


def _script(name: str) -> Script:
    folder = files("gateway.presence") / "lua"
    return Script((folder / "rules.lua").read_text() + (folder / f"{name}.lua").read_text())


_decode_connection = msgspec.json.Decoder(Connection).decode
_encode = msgspec.json.encode


class RedisStore(Store):
    """A store that any number of nodes share.

    Args:
        client: how to reach Redis.
        prefix: what its keys begin with. Gateways with the same prefix are one cluster.
        timing: the durations that presence follows, the same on every node.
        log_length: how many entries the log keeps, at least.
        outbox_length: how many transitions may wait in the outbox of webhooks; 0 on a node that sends none.
        part: follows the prefix in the names of its keys, to tell several stores of one cluster apart. They have one
            outbox together.
    """

    near = False

    def __init__(
        self,
        client: Client,
        prefix: str,
        timing: Timing,
        *,
        log_length: int = LOG_LENGTH,
        outbox_length: int = 0,
        part: str = "",
    ) -> None:
        self._client = client
        self._commands = Commands(client)
        self._base = base_of(prefix) + part
        self._timing = timing
        self._log_length = log_length
        self._outbox_length = outbox_length
        self._common = [self._key(name) for name in ("log", "state", "leases", "due", "users")]
        self._common.append(outbox_key(base_of(prefix)))
        self._log = Stream(client, self._key("log"))
        self._scripts = {
            name: _script(name)
            for name in (
                *("time", "renew", "connect", "describe", "disconnect", "beat", "release", "set_status"),
                *("restore", "bury", "sweep"),
            )
        }
        self._beats: Call | None = None
        """The newest script of beats. More beats join it until it is sent, or until another command follows it."""
        self._reviewed: bytes | None = None
        """After `Retention` has changed, all users are queued for a sweep, some at a time: the cursor of that scan.
        None if it has not changed, empty when the scan is done. One scan is enough: while the nodes of a rolling
        restart disagree about it, the others are about to be replaced."""

    # Commands

    async def time(self) -> int | None:
        """Read Redis's clock; see the port."""
        seconds, microseconds = await self._run("time", 0, [], [])
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def renew(self, node: str, now: int, *, position: int = 0, returning: bool = False) -> Lease:
        """Give or prolong a lease; see the port."""
        held, continues, retains_anew = await self._run(
            "renew",
            now,
            [self._key("dying")],
            [
                *(node, self._timing.lease, to_id(position), int(returning), OUTAGE),
                *(_written(self._timing.retention), self._outbox_length, UNWRITTEN_AFTER, RETURNING),
            ],
        )
        if retains_anew and self._reviewed is None:
            self._reviewed = b"0"
        return Lease(held=bool(held), log_continues=bool(continues))

    async def connect(self, connection: Connection, now: int) -> Commit:
        """Count a connection; see the port."""
        user = user_of(connection.tenant, connection.user_id)
        profile = b"" if connection.profile == NOBODY else _encode(connection.profile)
        arguments = [connection.node, user, connection.id, _encode(connection), profile]
        keys = [self._key("node", connection.node), *self._user_keys(user), queue_key(self._base, user)]
        return _commit(await self._run("connect", now, keys, arguments))

    async def describe(self, connection: Connection) -> Commit:
        """Replace what is known of a connection; see the port."""
        keys = [self._key("node", connection.node)]
        return _commit(await self._run("describe", 0, keys, [connection.id, _encode(connection)]))

    async def disconnect(
        self, connection: Connection, ending: Ending, now: int, *, active_at: int | None = None
    ) -> Commit:
        """End a connection; see the port."""
        user = user_of(connection.tenant, connection.user_id)
        hold, active = self._timing.hold_after(ending), now if ending is Ending.GOODBYE else active_at
        arguments = [connection.node, user, connection.id, ending.value, hold, active or ""]
        keys = [self._key("node", connection.node), *self._user_keys(user)]
        return _commit(await self._run("disconnect", now, keys, arguments))

    async def beat(self, node: str, beats: Sequence[Beat]) -> Commit:
        """Record activity; see the port. Beats that come at the same moment share one script."""
        call = self._beats
        if call is None or call.sent or call.arguments[3] != node or len(call.keys) > 2 * BEATS:
            call = self._start("beat", 0, [], [node, self._timing.ttl])
        for beat in beats:
            user = user_of(beat.tenant, beat.user_id)
            profile = b"" if beat.profile is None or beat.profile == NOBODY else _encode(beat.profile)
            call.keys += self._user_keys(user)
            call.arguments += [user, beat.at, int(beat.holds), beat.meta_json or b"", profile]
        self._beats = call
        commit = _commit(await self._answer(call))
        mine = {(beat.tenant, beat.user_id) for beat in beats}
        transitions = tuple(change for change in commit.transitions if (change.tenant, change.user_id) in mine)
        return Commit(commit.position, transitions)

    async def release(self, tenant: str, user_id: str, now: int) -> Commit:
        """End a TTL and a grace; see the port."""
        user = user_of(tenant, user_id)
        return _commit(await self._run("release", now, self._user_keys(user), [user]))

    async def set_status(self, tenant: str, user_id: str, choice: Choice, now: int) -> Commit:
        """Set a status by hand; see the port."""
        user = user_of(tenant, user_id)
        chosen = "" if choice.status is Chosen.ONLINE else choice.status.value
        arguments = [user, chosen, choice.text or "", "" if choice.until is None else choice.until]
        return _commit(await self._run("set_status", now, self._user_keys(user), arguments))

    async def restore(self, node: str, known: Sequence[UserStatus], now: int) -> Commit:
        """Give back what was lost; see the port."""
        commits = []
        for chunk in _chunks(known):
            keys: list[str] = []
            arguments: list[Any] = [node, self._timing.lease + self._timing.grace]
            for status in chunk:
                user = user_of(status.tenant, status.user_id)
                keys += self._user_keys(user)
                arguments += [user, status.version, _encode(fields_of(status))]
            commits.append(_commit(await self._run("restore", now, keys, arguments)))
        return _joined(commits)

    async def sweep(self, now: int) -> Commit:
        """Commit what time has changed; see the port."""
        out, dying, due, position = await self._together(
            ("ZRANGEBYSCORE", self._key("leases"), 0, now, "WITHSCORES"),
            ("ZRANGE", self._key("dying"), 0, -1, "WITHSCORES"),
            self._due(now),
            ("HGET", self._key("state"), "position"),
        )
        if self._reviewed:
            await self._review(self._reviewed, now)
        commits = [Commit(to_position(position or b"0-0"))]
        # The lease that ran out last comes last: it decides how long a user with connections to several nodes stays.
        for node, _ in sorted((pairs_of(out) | pairs_of(dying)).items(), key=lambda item: float(item[1])):
            commits += await self._bury(node.decode(), now)
        for _ in range(SWEEPS):
            if not due:
                break
            users = [user.decode() for user in due]
            keys = [key for user in users for key in self._user_keys(user)]
            commits.append(_commit(await self._run("sweep", now, keys, users)))
            due = await self._commands.send(*self._due(now))
        return _joined(commits)

    # Reads

    async def connections(self, node: str) -> Sequence[Connection]:
        """Read a node's connections; see the port."""
        return [_decode_connection(text) for text in await self._commands.send("HVALS", self._key("node", node))]

    async def snapshot(self) -> Snapshot:
        """Read the whole state; see the port.

        It is not read in one step. What changes meanwhile stands in the log, and is taken in from there: nothing that
        comes after the position is in the snapshot already.
        """
        position, statuses, entries = 0, dict[str, UserStatus](), list[Entry]()
        for _ in range(SNAPSHOTS):
            position = await self.position()
            statuses = await self._scan()
            with suppress(LogTrimmedError):
                entries = await self._read_up_to_now(position)
                break
        users = {user_of(entry.tenant, entry.user_id) for entry in entries}
        view = View()
        view.load(Snapshot(position, tuple(statuses.pop(user) for user in users if user in statuses)))
        view.apply(entries)
        return Snapshot(view.position, (*statuses.values(), *view.everyone()))

    async def read(self, after: int, *, wait: bool) -> Sequence[Entry]:
        """Read the log; see the port."""
        found = await self._log.read(after, wait=wait)
        if not found.continues:
            raise LogTrimmedError(f"the log does not go on from {to_id(after)}")
        try:
            return [decode_body(body).entry(position) for position, body in found.bodies]
        except (msgspec.MsgspecError, ValueError) as error:  # a newer version's, perhaps; a snapshot gets past it
            raise LogTrimmedError(f"an entry of the log cannot be read: {error}") from error

    async def position(self) -> int:
        """Read where the log ends; see the port."""
        return to_position(await self._commands.send("HGET", self._key("state"), "position") or b"0-0")

    async def leases(self) -> dict[str, int]:
        """Read who holds a lease; see the port."""
        return _leases(await self._commands.send("ZRANGE", self._key("leases"), 0, -1, "WITHSCORES"))

    async def explain(self, tenant: str, user_id: str) -> Explanation:
        """Read all that is known of one user; see the port."""
        user = user_of(tenant, user_id)
        key, recent = self._user_keys(user)
        found, transitions, leases = await self._together(
            ("HGETALL", key), ("LRANGE", recent, 0, RECENT - 1), ("ZRANGE", self._key("leases"), 0, -1, "WITHSCORES")
        )
        fields = pairs_of(found)
        at = {name.removeprefix(b"c:"): node.decode() for name, node in fields.items() if name.startswith(b"c:")}
        texts = await self._together(*(("HGET", self._key("node", node), name) for name, node in at.items()))
        until = _leases(leases)
        grace_until = fields.get(b"grace_until")
        return Explanation(
            status=both_of(user, [fields.get(name.encode()) for name in STATUS_FIELDS])[0],
            # One may have ended meanwhile.
            connections=tuple(_decode_connection(text) for text in texts if text is not None),
            leases={node: until[node] for node in at.values() if node in until},
            grace_until=None if grace_until is None else int(grace_until),
            transitions=tuple(
                transition_at(*text.split(b" ", 1)) for text in reversed(transitions) if not text.startswith(b"[")
            ),
        )

    async def sessions(self, tenant: str, user_id: str, now: int, limit: int) -> Sequence[OnlineSession]:
        """Read a user's sessions; see the port."""
        key, recent = self._user_keys(user_of(tenant, user_id))
        written, opened, texts = await self._together(
            ("HGET", self._key("state"), "retention"), ("HGET", key, "opened"), ("LRANGE", recent, -limit, -1)
        )
        retention = _read_retention(written)
        kept = [session_of(text, opened) for text in reversed(texts) if text.startswith(b"[")][: retention.sessions]
        return [session for session in kept if session.is_kept_at(now, retention)]

    async def close(self) -> None:
        """Close the connections to Redis."""
        await self._log.close()
        await self._commands.close()
        await self._client.aclose()

    # One step each

    async def _scan(self) -> dict[str, UserStatus]:
        """Read every user's status, by user; each is as of another moment."""
        statuses: dict[str, UserStatus] = {}
        cursor: bytes | int = b"0"
        while True:
            cursor, names = await self._commands.send("SSCAN", self._key("users"), cursor, "COUNT", SCAN)
            users = [name.decode() for name in names]
            found = await self._together(*(("HMGET", user_key(self._base, user), *STATUS_FIELDS) for user in users))
            statuses.update((user, status_of(user, fields)) for user, fields in zip(users, found, strict=True))
            if int(cursor) == 0:
                return statuses

    async def _read_up_to_now(self, after: int) -> list[Entry]:
        """Read the log past a position, at least as far as it goes now.

        Raises:
            LogTrimmedError: it does not go on from there.
        """
        end, entries = await self.position(), list[Entry]()
        if end < after:
            raise LogTrimmedError("the log ends before what was read of it")
        while after < end:
            read = await self.read(after, wait=False)
            if not read:
                raise LogTrimmedError(f"the log has nothing past {to_id(after)}")
            entries += read
            after = read[-1].position
        return entries

    async def _together(self, *commands: Sequence[Any]) -> list[Any]:
        """Send plain commands in one round trip."""
        calls = [self._commands.enqueue(*command) for command in commands]
        return [await self._commands.answer(call) for call in calls]

    def _due(self, now: int) -> Sequence[Any]:
        return ("ZRANGEBYSCORE", self._key("due"), 0, now, "LIMIT", 0, CHUNK)

    async def _review(self, cursor: bytes, now: int) -> None:
        """Queue the next users for a sweep, because `Retention` has changed; see `_reviewed`."""
        after, users = await self._commands.send("SSCAN", self._key("users"), cursor, "COUNT", SCAN)
        if users:
            await self._commands.send("ZADD", self._key("due"), "LT", *(word for user in users for word in (now, user)))
        self._reviewed = after if int(after) else b""

    async def _bury(self, node: str, now: int) -> list[Commit]:
        """End the connections of a node whose lease ran out, `CHUNK` at a time."""
        key, commits = self._key("node", node), []
        while True:
            # At random, because several nodes may do this at once, and a scan would begin at the same ones each time.
            found = pairs_of(await self._commands.send("HRANDFIELD", key, CHUNK, "WITHVALUES"))
            keys = [self._key("dying"), key]
            arguments: list[Any] = [node, self._timing.hold_after(Ending.NODE_DIED)]
            for connection, text in found.items():
                known = _decode_connection(text)
                user = user_of(known.tenant, known.user_id)
                keys += self._user_keys(user)
                arguments += [user, connection]
            reply = await self._run("bury", now, keys, arguments)
            commits.append(_commit(reply))
            if found and len(commits) == 1 and reply[2]:
                _log.warning("a node died; its connections end", node=node)
            if not reply[1] or not found:
                return commits

    def _key(self, *names: str) -> str:
        return self._base + ":".join(names)

    def _user_keys(self, user: str) -> list[str]:
        return [user_key(self._base, user), self._key("recent", user)]

    def _start(self, name: str, now: int, keys: Iterable[str], arguments: Iterable[Any]) -> Call:
        self._beats = None  # later beats must not join a script that is sent before this one
        kept: int | str = self._log_length
        if self.trace is not None and (trace := self.trace()) is not None:
            kept = f"{kept} {trace.traceparent} {trace.tracestate or ''}"
        common = [now, self._timing.away_after, kept]
        return self._commands.start(self._scripts[name], [*self._common, *keys], [*common, *arguments])

    async def _run(self, name: str, now: int, keys: Iterable[str], arguments: Iterable[Any]) -> Any:
        return await self._answer(self._start(name, now, keys, arguments))

    async def _answer(self, call: Call) -> Any:
        try:
            return await self._commands.answer(call)
        except ResponseError as error:
            if str(error).startswith("LEASE"):
                raise LeaseLostError(str(error)) from None
            raise


def _chunks(items: Sequence[UserStatus]) -> Iterable[Sequence[UserStatus]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def _leases(found: Sequence[Any]) -> dict[str, int]:
    return {node.decode(): int(float(score)) for node, score in pairs_of(found).items()}


def _written(retention: Retention) -> str:
    text = f"{retention.sessions} {retention.sessions_ttl} {retention.last_seen_ttl or 0}"
    return text if retention.choices else f"{text} 0"


def _read_retention(text: bytes | None) -> Retention:
    """What nodes have written; a new store, where none has, keeps no sessions."""
    sessions, ttl, last_seen_ttl, *rest = map(int, (text or b"0 0 0").split())
    return Retention(sessions=sessions, sessions_ttl=ttl, last_seen_ttl=last_seen_ttl or None, choices=not rest)


def _commit(reply: Any) -> Commit:
    position, resumed, committed, *queued = reply
    transitions = tuple(transition_at(*pair) for pair in zip(committed[::2], committed[1::2], strict=True))
    return Commit(to_position(position), transitions, bool(resumed), bool(queued[0]) if queued else None)


def _joined(commits: Sequence[Commit]) -> Commit:
    """What several scripts of one command did together."""
    return Commit(
        max((commit.position for commit in commits), default=0),
        tuple(transition for commit in commits for transition in commit.transitions),
    )
