"""What a client remembers with each event: up to where it has been told. It means the same on every node.

As text, ``<node>.<log>.<bus>.<number>``: the node whose word it is, a position of the presence log, a position of the
bus, and how many messages of that node's own have been told, whose position on the bus it did not know yet. Numbers are
base64 of their bytes. Two forms are rarer: ``<log>~<to>~<heard>`` stands for the first events of a batch, and a fifth
part names another node as the one whose messages are counted.

Clients send it back, and may send anything: it says what they have heard, and nothing of what they may hear.
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
    """What names a node, or another sender on the bus, in an offset: the random end of its name."""
    return node[-8:]


class Mark(NamedTuple):
    """Up to where on the bus a client has been told."""

    bus: int
    """Every message up to this position."""
    sender: str
    number: int
    """And of this sender every message up to this number."""


class Offset(NamedTuple):
    """Up to where a client has been told."""

    node: str
    """Where its session is."""
    log: int
    """Every change up to this position of the log."""
    mark: Mark
    to: int = 0
    """Where the batch ends that begins behind `log`; 0 outside of one."""
    heard: int = 0
    """How many events of the batch it has heard."""

    def __str__(self) -> str:
        log = _pack(self.log)
        if self.to:
            log = f"{log}~{_pack(self.to)}~{_pack(self.heard)}"
        bus, sender, number = self.mark
        other = "" if sender == self.node else f".{sender}"
        return f"{self.node}.{log}.{_pack(bus)}.{_pack(number)}{other}"

    @classmethod
    def parse(cls, text: object) -> Self | None:
        """Read one; None for what is none."""
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
