"""The log of channels on the bus's stream in Redis, for any number of nodes: ``lua/say.lua`` and ``lua/history.lua``.

What is said is a message on the bus that no node is the sender of, so that each hears it there, the one it was said on
too, among all else that nodes say, in the one order. The histories are written in the same step.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from gateway.channels.log import TOPIC, ChannelLog, Kept, first_kept, used_up
from gateway.channels.model import History, Said
from gateway.channels.names import scope_of
from gateway.errors import InvalidPayloadError
from gateway.nodes.bus import Message, written
from gateway.redis.bus import LARGEST, LENGTH, REMEMBERED
from gateway.redis.commands import Commands, Script
from gateway.redis.keys import base_of
from gateway.redis.stream import to_id, to_position

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.channels.model import Draft
    from gateway.nodes.bus import Bus
    from gateway.redis.connection import Client

_log = structlog.get_logger(__name__)

SENDER = "channels"
"""Who sends on the bus what is said in channels: no node, as nodes do not hear what they sent themselves."""


def _script(name: str) -> Script:
    return Script((files("gateway.channels") / "lua" / f"{name}.lua").read_text())


_SAY, _HISTORY = _script("say"), _script("history")
_encode = msgspec.json.encode
_decode_message = msgspec.json.Decoder(Message).decode
_decode_said = msgspec.json.Decoder(Said).decode


class _Once(msgspec.Struct, frozen=True, array_like=True):
    """What was said under a name: once, and in which channels."""

    first: Said
    others: list[str]

    @classmethod
    def of(cls, said: Sequence[Said]) -> _Once:
        return cls(said[0], [each.channel for each in said[1:]])

    def said(self) -> list[Said]:
        return [self.first, *(msgspec.structs.replace(self.first, channel=each) for each in self.others)]


_decode_once = msgspec.json.Decoder(_Once).decode


class RedisChannelLog(ChannelLog):
    """A log that any number of nodes share.

    Args:
        client: how to reach Redis.
        prefix: what its keys begin with; the bus's.
        node: this node's name, new with each start.
        bus: by which this node hears what is said.
        kept: how much is kept, the same on every node.
    """

    def __init__(self, client: Client, prefix: str, node: str, bus: Bus, kept: Kept) -> None:
        super().__init__()
        self._commands = Commands(client)
        self._bus = bus
        self._kept = kept
        base = base_of(prefix)
        self._stream = f"{base}bus"
        self._position = f"{base}bus:position"
        self._base = f"{base}said:"
        self._began = f"{self._base}began"
        self._node = f"{self._base}node:{node}"
        self._calls = 0
        """How many this node has said that have no name: Redis knows the last ones, where one is sent again."""
        bus.subscribe(TOPIC, Said, self._on_said)

    async def say(
        self, drafts: Sequence[Draft], now: int, *, once: str | None = None, budget: str | None = None
    ) -> Sequence[Said]:
        """Say something; see the port."""
        said = [Said(**msgspec.structs.asdict(draft), position=0, at=now) for draft in drafts]
        trace = None if self.trace is None else self.trace()
        histories: dict[str, int] = {}
        events: list[Any] = []
        for each in said:
            body = written(SENDER, TOPIC, _encode(each), trace=trace)
            if len(body) > LARGEST:
                raise InvalidPayloadError(f"what is said may have {LARGEST} bytes; this has {len(body)}")
            number = 0
            if each.keep and self._kept.events:
                number = histories.setdefault(self._history_key(each.tenant, each.channel), len(histories) + 6)
            events += [number, body]
        if once is None:
            self._calls += 1
            name, what = self._node, [self._calls, REMEMBERED, b""]
        else:
            name, what = f"{self._base}once:{once}", [0, self._kept.again, _encode(_Once.of(said))]
        cost = 0
        if budget is not None:
            cost = self._kept.cost([len(bytes(each.data)) for each in said if each.keep], named=once is not None)
        keys = [self._stream, self._position, self._began, name, f"{self._base}budget:{budget or ''}", *histories]
        arguments = [LENGTH, self._kept.events, self._kept.ttl, *what, now, cost, self._kept.budget, *events]
        answer: bytes | int = await self._commands.answer(self._commands.start(_SAY, keys, arguments))
        if isinstance(answer, int):
            raise used_up(self._kept, answer / 1000)
        ids, _, text = answer.partition(b"\n")
        if text:
            said = _decode_once(text).said()
        return [_placed(each, to_position(entry_id)) for each, entry_id in zip(said, ids.split(), strict=True)]

    async def history(self, tenant: str, channel: str, now: int, *, after: int | None, limit: int) -> History:
        """Read what was said; see the port."""
        key = self._history_key(tenant, channel)
        begin = first_kept(now, self._kept)
        position, began, entries = await self._read(key, max(begin, after or 0), limit)
        lost = after is not None and after > position  # of a life of Redis's before this one
        if lost:
            position, began, entries = await self._read(key, begin, limit)
        events = [
            _placed(_decode_said(_decode_message(fields[b"body"]).data), to_position(entry_id))
            for entry_id, fields in reversed(entries[:limit])
        ]
        begin = max(begin, began)
        missing = to_position(entries[-1][1][b"prev"]) if entries else begin
        recovered = after is not None and not lost and len(entries) <= limit and (after or begin) >= missing
        return History(events, position, recovered and self._kept.events > 0)

    async def close(self) -> None:
        """Send no more; the client is the store's to close."""
        await self._commands.close()

    def _history_key(self, tenant: str, channel: str) -> str:
        return f"{self._base}history:{scope_of(tenant, channel)}"

    async def _read(self, key: str, after: int, limit: int) -> tuple[int, int, list[tuple[bytes, dict[bytes, bytes]]]]:
        """The bus's position, now and when channels began, and one entry more than may be told, newest first."""
        keys, arguments = [self._position, self._began, key], [to_id(after), limit + 1]
        position, began, found = await self._commands.answer(self._commands.start(_HISTORY, keys, arguments))
        entries = [(entry_id, dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, fields in found]
        return to_position(position), to_position(began), entries

    async def _on_said(self, said: Said) -> None:
        current = self._bus.current
        self._tell(_placed(said, 0 if current is None else current[0]), own=False)


def _placed(said: Said, position: int) -> Said:
    return msgspec.structs.replace(said, position=position) if said.keep else said
