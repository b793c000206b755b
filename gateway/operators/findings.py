"""What a doctor finds."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It runs, and may not as it should."""
    ERROR = "error"
    """It does not run, or is open to others."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    about: str
    """What: ``settings``, ``keys``, ``redis``, ``port``, ``reach``, ``files`` or ``install``."""
    level: Level
    said: str
    """How it is. Nothing in it is secret."""
    advice: str | None = None
    """What to change; None where nothing is to be."""


def ok(about: str, said: str) -> Finding:
    """Find that something is as it should be."""
    return Finding(about, Level.OK, said)


def warning(about: str, said: str, advice: str) -> Finding:
    """Find what should be otherwise."""
    return Finding(about, Level.WARNING, said, advice)


def error(about: str, said: str, advice: str) -> Finding:
    """Find what is to be otherwise."""
    return Finding(about, Level.ERROR, said, advice)
