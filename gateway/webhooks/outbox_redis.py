"""The outbox in Redis, for any number of nodes: streams, and one Lua script for each step, under ``lua/``."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from gateway.presence.encoding import transition_of
from gateway.redis.commands import Commands, Script, pairs_of
from gateway.redis.keys import CHANNELS, base_of, outbox_key
from gateway.webhooks.event import Message, message_of
from gateway.webhooks.outbox import OVERFLOW, UNREADABLE, Bounds, Letter, Outbox, State, Taken, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from gateway.redis.connection import Client
    from gateway.webhooks.endpoint import Endpoint

_log = structlog.get_logger(__name__)

CHUNK = 200
"""Events that one script moves at the most: a few milliseconds in which Redis serves nobody else."""

PAGE = 500
"""Dead letters in one step of reading them."""


class _Said(msgspec.Struct, frozen=True):
    """A dead letter, but for its message."""

    reason: str
    attempts: int
    failed_at: int


_decode_message = msgspec.json.Decoder(Message).decode
_decode_said = msgspec.json.Decoder(_Said).decode
_encode = msgspec.json.encode

READERS: dict[bytes, Callable[[bytes], Message | None]] = {
    b"transition": lambda body: message_of(transition_of(body)),
    b"part": lambda body: message_of(transition_of(body)),
    b"message": _decode_message,
}
"""How what is written into the outbox is read, by its kind: what the store's scripts commit, and a message that
somebody else made ready. None where there is nothing to tell of it."""


def _script(name: str) -> Script:
    folder = files("gateway.webhooks") / "lua"
    return Script((folder / "outbox.lua").read_text() + (folder / f"{name}.lua").read_text())


class RedisOutbox(Outbox):
    """An outbox that any number of nodes share.

    Args:
        client: how to reach Redis.
        prefix: what its keys begin with; the store's.
        bounds: how much is kept, the same on every node.
    """

    def __init__(self, client: Client, prefix: str, bounds: Bounds) -> None:
        self._commands = Commands(client)
        self._bounds = bounds
        self._base = base_of(prefix)
        self._outbox = outbox_key(self._base)
        self._scripts = {name: _script(name) for name in ("add", "take", "bury", "replay", "resume", "forget")}
        self._unreadable = 0
        """Entries that only a newer version can read, when last looked at."""
        self._put_aside = 0
        """Queued events that could not be read, since `take` said so."""

    async def register(self, names: Collection[str]) -> None:
        """Make endpoints known; see the port."""
        for call in [self._commands.enqueue("HSETNX", self._endpoints, name, "") for name in names]:
            await self._commands.answer(call)

    async def add(self, messages: Sequence[Message]) -> int:
        """Put events into the outbox; see the port."""
        return int(await self._run("add", 0, [self._outbox], [_encode(each) for each in messages]))

    async def take(self, endpoints: Sequence[Endpoint], now: int) -> Taken:
        """Move events into queues; see the port."""
        entries = await self._committed()
        arguments: list[Any] = [_encode(_Said(OVERFLOW, 0, now))]
        for place, message in entries:
            wanted = " ".join(
                str(number)
                for number, endpoint in enumerate(endpoints, start=1)
                if message is not None and message.type in endpoint.types
            )
            arguments += [place, wanted, b"" if message is None else _encode(message)]
        keys = [key for endpoint in endpoints for key in self._keys(endpoint.name)]
        states = [f"{self._base}state", f"{self._base}{CHANNELS}state"]
        taken = Taken(*await self._run("take", now, [self._outbox, *states, *keys], arguments))
        put_aside, self._put_aside = self._put_aside, 0
        return msgspec.structs.replace(taken, unreadable=put_aside)

    async def read(self, name: str, after: str, limit: int) -> Sequence[Waiting]:
        """Read a queue; see the port."""
        begin = f"({after}" if after else "-"
        while True:
            found = await self._commands.send("XRANGE", self._keys(name)[0], begin, "+", "COUNT", limit)
            waiting: list[Waiting] = []
            for place, fields in found:
                try:
                    waiting.append(Waiting(place.decode(), _decode_message(fields[b"message"])))
                except (KeyError, ValueError):  # of msgspec's, too
                    await self._put_unreadable_aside(name, place)
            if waiting or not found:
                return waiting

    async def done(self, name: str, place: str) -> None:
        """Take an event out; see the port."""
        await self._commands.send("XDEL", self._keys(name)[0], place)

    async def bury(self, name: str, place: str, letter: Letter) -> int:
        """Make a dead letter; see the port."""
        said = _Said(letter.reason, letter.attempts, letter.failed_at)
        return int(await self._run("bury", letter.failed_at, self._keys(name), [place, _encode(said)]))

    async def letters(self, name: str) -> Sequence[Letter]:
        """Read dead letters; see the port."""
        return [letter for _place, letter in await self._letters(name)]

    async def replay(self, name: str, ids: Collection[str] | None) -> Sequence[str]:
        """Send dead letters again; see the port."""
        chosen = {
            place: letter.message.id
            for place, letter in await self._letters(name)
            if ids is None or letter.message.id in ids
        }
        replayed: list[str] = []
        for places in _chunks(list(chosen)):
            replayed += [chosen[place] for place in await self._run("replay", 0, self._keys(name), places)]
        return replayed

    async def stop(self, name: str, reason: str) -> None:
        """Send nothing to an endpoint; see the port."""
        await self._commands.send("HSET", self._endpoints, name, reason)

    async def resume(self, name: str) -> bool:
        """Send to an endpoint again; see the port."""
        return bool(await self._run("resume", 0, [self._endpoints], [name]))

    async def forget(self, name: str) -> tuple[int, int] | None:
        """Let go of an endpoint; see the port."""
        lengths = await self._run("forget", 0, [self._endpoints, *self._keys(name)], [name])
        return None if lengths is None else (int(lengths[0]), int(lengths[1]))

    async def states(self) -> dict[str, State]:
        """Read what is known of each endpoint; see the port."""
        names = pairs_of(await self._commands.send("HGETALL", self._endpoints))
        states = {}
        for name, why in sorted((name.decode(), why.decode()) for name, why in names.items()):
            waiting, dead = [self._commands.enqueue("XLEN", key) for key in self._keys(name)]
            states[name] = State(
                waiting=await self._commands.answer(waiting),
                dead=await self._commands.answer(dead),
                stopped=why or None,
            )
        return states

    async def close(self) -> None:
        """Send no more; the client is the store's to close."""
        await self._commands.close()

    @property
    def _endpoints(self) -> str:
        return f"{self._outbox}:endpoints"

    def _keys(self, name: str) -> list[str]:
        return [f"{self._outbox}:queue:{name}", f"{self._outbox}:dead:{name}"]

    async def _committed(self) -> list[tuple[bytes, Message | None]]:
        """The oldest that no sender has taken, of those that this version can read; what it cannot is left there."""
        begin, unreadable = b"-", 0
        found: list[tuple[bytes, Message | None]] = []
        while not found:
            entries = await self._commands.send("XRANGE", self._outbox, begin, "+", "COUNT", CHUNK)
            for place, fields in entries:
                try:
                    [(kind, body)] = fields.items()
                    found.append((place, READERS[kind](body)))
                except (KeyError, ValueError):  # of msgspec's, too
                    unreadable += 1
            if len(entries) < CHUNK:
                break
            begin = b"(" + entries[-1][0]
        if unreadable and not self._unreadable:
            _log.warning("webhooks: some of the outbox is for a newer version; it waits for one", count=unreadable)
        self._unreadable = unreadable
        return found

    async def _put_unreadable_aside(self, name: str, place: bytes) -> None:
        queued_at = int(place.partition(b"-")[0])
        said = _encode(_Said(UNREADABLE, 0, queued_at))
        await self._run("bury", queued_at, self._keys(name), [place, said])
        self._put_aside += 1

    async def _letters(self, name: str) -> list[tuple[bytes, Letter]]:
        letters: list[tuple[bytes, Letter]] = []
        begin = b"-"
        while True:
            page = await self._commands.send("XRANGE", self._keys(name)[1], begin, "+", "COUNT", PAGE)
            letters += _read_letters(page)
            if len(page) < PAGE:
                return letters
            begin = b"(" + page[-1][0]

    async def _run(self, name: str, now: int, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        common = [now, self._bounds.queue, self._bounds.dead]
        return await self._commands.answer(self._commands.start(self._scripts[name], [*keys], [*common, *arguments]))


def _read_letters(page: Any) -> Iterator[tuple[bytes, Letter]]:
    for place, fields in page:
        try:
            said, message = _decode_said(fields[b"letter"]), _decode_message(fields[b"message"])
        except (KeyError, ValueError):  # it waits for a version that can
            continue
        yield (
            place,
            Letter(message=message, reason=said.reason, attempts=said.attempts, failed_at=said.failed_at),
        )


def _chunks(places: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (places[start : start + CHUNK] for start in range(0, len(places), CHUNK))
