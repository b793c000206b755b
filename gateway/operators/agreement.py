"""Which settings all nodes of a gateway are to have alike, and which of them they have otherwise."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, SecretStr

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.settings import Settings

_ALIKE = (
    "admin_ui_",
    "channel_",
    "cors_allowed_origins",
    "echo_anonymous",
    "jwt_",
    "last_seen_ttl",
    "max_connections_per_",
    "message_",
    "node_lease",
    "notification_",
    "presence_",
    "pusher_",
    "rate_limit_",
    "recovery_window",
    "revocation_ttl",
    "service_api_keys",
    "session_history",
    "visibility_ttl",
    "webhook_",
)
"""How the names begin of those that are to be alike: what one node does by them another one sees, or goes on with."""

_SETS = frozenset({"cors_allowed_origins", "jwt_algorithms", "service_api_keys", "service_api_keys_readonly"})
"""Those whose order says nothing."""

_BYTES = 2
"""Of each digest. It shows that two values differ, but for one case in 65,536, and is too short to find one by it."""


def digests(settings: Settings) -> dict[str, int]:
    """What tells whether two nodes have a setting alike, by its name, and says nothing else of it."""
    return {
        name: _digest(settings.redis_prefix, name, getattr(settings, name))
        for name in type(settings).model_fields
        if name.startswith(_ALIKE)
    }


def differing(own: Mapping[str, int], others: Mapping[str, int]) -> tuple[str, ...]:
    """The variables that two nodes have otherwise; one that only one of them knows is of another version."""
    return tuple(sorted(name.upper() for name in own.keys() & others.keys() if own[name] != others[name]))


def _digest(salt: str, name: str, value: object) -> int:
    plain = _plain(value)
    if name in _SETS and isinstance(plain, list):
        plain = sorted(plain, key=repr)
    return int.from_bytes(sha256(repr((salt, name, plain)).encode(errors="surrogatepass")).digest()[:_BYTES])


def _plain(value: Any) -> object:
    """A value whose `repr` is that of every equal one: of a secret, what it holds."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)  # as the same number may be given
    return value
