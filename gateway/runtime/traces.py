"""What trace something is part of, as it goes along with what is committed, said or sent; see `tracing`."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Trace(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place in a trace, as W3C's Trace Context has it: https://www.w3.org/TR/trace-context."""

    traceparent: str
    tracestate: str | None = None
    """What systems that take part in it have to say of it; None for nothing."""


Tracer = Callable[[], Trace | None]
"""Returns what trace is under way where it is called; None for none."""
