"""The gateway's own command, with a rule about who may see whom: ``python -m tests.chaos.node serve``."""

from __future__ import annotations

import sys
from functools import partial

from gateway.__main__ import main
from gateway.app import Gateway

SHY, STRANGER = "shy", "stranger"
"""What names say: who is the one is hidden from who is the other."""


def may_see(viewer: str, user: str) -> bool:
    """The rule."""
    return not (viewer.endswith(f"-{STRANGER}") and user.endswith(f"-{SHY}"))


if __name__ == "__main__":
    sys.exit(main(make=partial(Gateway, visibility=may_see)))
