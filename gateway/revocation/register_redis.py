"""The register of revocations in Redis, for any number of nodes."""

from __future__ import annotations

import secrets
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from gateway.redis.commands import Commands, Script
from gateway.redis.keys import base_of
from gateway.revocation.revocations import MOST, Revocation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.redis.connection import Client

CHUNK = 200
"""Revocations that one script adds or reads at the most. It takes a millisecond, in which Redis serves nobody else."""

_FOLDER = files("gateway.revocation") / "lua"
_PUT = Script((_FOLDER / "put.lua").read_text())
_FOLLOW = Script((_FOLDER / "follow.lua").read_text())


class RevocationRegister:
    """A register that any number of nodes share; see the port, `Register`.

    Args:
        client: how to reach Redis.
        prefix: what its keys begin with; the store's.
        most: how many are kept.
    """

    def __init__(self, client: Client, prefix: str, most: int = MOST) -> None:
        self._commands = Commands(client)
        base = f"{base_of(prefix)}revoked"
        self._keys = [base, f"{base}:until", f"{base}:order", f"{base}:head"]
        self._most = most
        self._epoch = self._place = self._name = ""

    async def put(self, revocations: Sequence[Revocation], now: int) -> Sequence[Revocation]:
        """Let all nodes know; see the port."""
        full: list[Revocation] = []
        for chunk in _chunks(revocations):
            said = [part for each in chunk for part in (each.name, each.before, each.until)]
            arguments = [now, self._most, secrets.token_hex(8), *said]
            names = {name.decode() for name in await self._run(_PUT, arguments)}
            full += [each for each in chunk if each.name in names]
        return full

    async def follow(self, now: int) -> tuple[Sequence[Revocation], bool]:
        """Read what is new; see the port."""
        found: list[Revocation] = []
        epoch, place, name = self._epoch, self._place, self._name  # this node's only when all has been read
        goes_on, more = True, True
        while more:
            answer = await self._run(_FOLLOW, [epoch, place or "0", name, CHUNK, secrets.token_hex(8)])
            known, continues, more, entries = answer
            if not continues:
                goes_on = not self._epoch
                place = name = ""
                found.clear()
            epoch = known.decode()
            for at, named, value in zip(*[iter(entries)] * 3, strict=True):
                place, name = at.decode(), named.decode()
                if value:  # else it has run out
                    before, _, until = value.partition(b":")
                    if int(until) > now:
                        found.append(Revocation.named(name, int(before), int(until)))
        self._epoch, self._place, self._name = epoch, place, name
        return found, goes_on

    async def close(self) -> None:
        """Send no more."""
        await self._commands.close()

    async def _run(self, script: Script, arguments: list[Any]) -> Any:
        return await self._commands.answer(self._commands.start(script, list(self._keys), arguments))


def _chunks(revocations: Sequence[Revocation]) -> Iterator[Sequence[Revocation]]:
    return (revocations[start : start + CHUNK] for start in range(0, len(revocations), CHUNK))
