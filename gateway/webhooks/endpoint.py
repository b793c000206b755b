"""An endpoint, and the signature that tells it who sends: https://www.standardwebhooks.com."""

from __future__ import annotations

import base64
import hmac
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from gateway.pusher.signature import Signer
from gateway.webhooks.event import ALL_TYPES, NOTE_TYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT = "default"
"""The name of the endpoint of ``PRESENCE_WEBHOOK_URL``."""

_PREFIX = "whsec_"


class Endpoint(msgspec.Struct, frozen=True):
    """Where events are sent."""

    name: str
    """The name of its queue, the same after a restart and on every node."""
    url: str
    keys: tuple[bytes, ...]
    """Each of them signs: while a secret is being replaced, a receiver may know only the old one or only the new."""
    types: frozenset[str] = frozenset(ALL_TYPES)
    """The types of events that it wants."""
    signer: Signer | None = None
    """Signs in place of the keys if the endpoint is sent Pusher's format; None for the gateway's own format."""

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r})"  # the rest is secret


def keys_of(secret: str) -> tuple[bytes, ...]:
    """The keys in a secret: ``whsec_`` followed by base64, or any text as it is; several are separated by spaces.

    Raises:
        ValueError: there is no key, or what follows ``whsec_`` is not base64.
    """
    keys = tuple(_key(part) for part in secret.split())
    if not keys or not all(keys):
        raise ValueError("takes a secret: whsec_ and base64, or any text")
    return keys


def _key(secret: str) -> bytes:
    if not secret.startswith(_PREFIX):
        return secret.encode()
    text = secret.removeprefix(_PREFIX)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise ValueError("takes base64 after whsec_; a secret of another form is taken as it is") from None


def types_of(patterns: Sequence[str]) -> frozenset[str]:
    """The types of events that match patterns: a type's name, ``user.*``, ``channel.*``, ``member.*`` or ``*``.

    A pattern with ``*`` does not match `NOTE_TYPES`; they have to be named.

    Raises:
        ValueError: a pattern matches nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        head = pattern.removesuffix("*")
        named = {kind for kind in ALL_TYPES if head != pattern and kind.startswith(head)}
        named |= {pattern} & {*ALL_TYPES, *NOTE_TYPES}
        if not named:
            known = ", ".join((*ALL_TYPES, *NOTE_TYPES))
            raise ValueError(f"events takes {known}, user.*, channel.*, member.* or *; not {pattern!r}")
        found |= named
    return frozenset(found)


def headers(endpoint: Endpoint, message_id: str, body: bytes, seconds: int) -> dict[str, str]:
    """The headers for one attempt, as "Signature scheme" of the Standard Webhooks specification defines them.

    Args:
        endpoint: the receiver, whose keys sign.
        message_id: the event's id.
        body: the request's body.
        seconds: the time of this attempt, in Unix seconds.
    """
    signed = b"%b.%d.%b" % (message_id.encode(), seconds, body)
    signatures = [base64.b64encode(hmac.digest(key, signed, sha256)).decode() for key in endpoint.keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
