"""The names of keys that more than one adapter has to do with. All keys of a gateway have one hash tag."""

from __future__ import annotations

SEPARATOR = "\x1f"
"""Between a tenant and a user id; neither holds control characters."""


def base_of(prefix: str) -> str:
    """What the keys of a gateway begin with."""
    return f"{{{prefix}}}:"


CHANNELS = "channels:"
"""What the keys of the store of channels begin with, behind the rest: they have presence's hash tag, for one outbox."""


def user_of(tenant: str, user_id: str) -> str:
    """A user, as scripts name them."""
    return f"{tenant}{SEPARATOR}{user_id}"


def user_key(base: str, user: str) -> str:
    """Where a user's presence is: the hash with the fields ``c:<connection>`` -> node."""
    return f"{base}user:{user}"


def queue_key(base: str, user: str) -> str:
    """What of a user's queue is there where something waits."""
    return f"{base}queue:{user}"


def outbox_key(base: str) -> str:
    """Where transitions wait for a sender of webhooks to take them."""
    return f"{base}outbox"
