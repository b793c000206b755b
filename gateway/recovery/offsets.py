"""Offsets: how far a client has been told. Each event carries one, and it means the same on every node.

As text it is ``<node>.<log>.<bus>.<number>``: the node that sent it, a position of the presence log, a position of the
bus, and the number of the last message that this node itself has published, whose position on the bus it may not know
yet. Numbers are the base64 of their bytes. There are two rarer forms: ``<log>~<to>~<heard>`` in place of ``<log>`` says
how many events of a batch the client has, and a fifth part names another node as the publisher that ``<number>`` is of.

Clients send their last offset back when they reconnect, and may send anything: it says what they have been told, and
gives them no right to anything.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import lru_cache
from typing import NamedTuple, Self

_MAX = 2**63
_LONGEST = 128
_TEXT = re.compile(
    r"(?P<node>[0-9a-f]{8})\.(?P<log>[\w-]{1,11})(?:~(?P<to>[\w-]{1,11})~(?P<heard>[\w-]{1,11}))?"
    r"\.(?P<bus>[\w-]{1,11})\.(?P<number>[\w-]{1,11})(?:\.(?P<sender>[0-9a-f]{8}))?",
    re.ASCII,
)


def short(node: str) -> str:
    """The short name, in offsets, of a node or another sender on the bus: the random end of its name."""
    return node[-8:]


class Mark(NamedTuple):
    """How far a client has been told of the bus."""

    bus: int
    """It has been told every message up to this position,"""
    sender: str
    """and of this sender"""
    number: int
    """every message up to this number."""


class Offset(NamedTuple):
    """How far a client has been told of the presence log and of the bus."""

    node: str
    """The short name of the node that has its session."""
    log: int
    """It has been told every change up to this position of the log."""
    mark: Mark
    to: int = 0
    """Within a batch that tells of the changes behind `log`: the position that the batch reaches; otherwise 0."""
    heard: int = 0
    """How many events of that batch it has."""

    def __str__(self) -> str:
        log = _pack(self.log)
        if self.to:
            log = f"{log}~{_pack(self.to)}~{_pack(self.heard)}"
        bus, sender, number = self.mark
        other = "" if sender == self.node else f".{sender}"
        return f"{self.node}.{log}.{_pack(bus)}.{_pack(number)}{other}"

    @classmethod
    def parse(cls, text: object) -> Self | None:
        """Read an offset; None if it is not one."""
        if not isinstance(text, str) or len(text) > _LONGEST or (found := _TEXT.fullmatch(text)) is None:
            return None
        try:
            mark = Mark(_unpack(found["bus"]), found["sender"] or found["node"], _unpack(found["number"]))
            batch = (_unpack(found["to"]), _unpack(found["heard"])) if found["to"] else (0, 0)
            return cls(found["node"], _unpack(found["log"]), mark, *batch)
        except ValueError:
            return None


@lru_cache(1024)
def _pack(number: int) -> str:
    return urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8 or 1)).rstrip(b"=").decode()


def _unpack(text: str) -> int:
    number = int.from_bytes(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    if number >= _MAX:
        raise ValueError("no position")
    return number
