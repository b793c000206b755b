"""Who may be in a channel: the application's rule, its backend over HTTP, or the built-in rules."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog

from gateway.channels.model import MAX_INFO, Person
from gateway.channels.names import Kind, is_conversation, is_of_user, kind_of, parties_in, user_channel
from gateway.errors import ForbiddenError, InvalidPayloadError, UnavailableError
from gateway.presence.model import Profile
from gateway.wire import encode_given, is_id

if TYPE_CHECKING:
    from gateway.access.auth import Identity
    from gateway.channels.model import Asker

_log = structlog.get_logger(__name__)

ADMIN = "admin"
"""The role that may be in ``private-admin``."""

ChannelRule = Callable[..., "bool | Mapping[str, Any] | Awaitable[bool | Mapping[str, Any] | None] | None"]
"""``channel_auth(identity, channel)``: True lets the user in, False refuses, None leaves it to the backend or the
built-in rules. For a presence channel a mapping lets the user in, too: it is what other members are told about them
besides the id. The function may be async."""


class Backend(Protocol):
    """An application's own authorizer, asked over HTTP."""

    async def ask(self, asker: Asker, channel: str) -> Person | None:
        """Ask whether somebody may be in a channel.

        Returns:
            The member that they are in it; None unless it is a presence channel.

        Raises:
            ForbiddenError: the backend refuses.
            UnavailableError: the backend cannot be reached, or its answer cannot be read.
        """


class Authorizer:
    """Decides who may be in a channel, and as which member.

    Args:
        rule: the application's rule; None if it has none.
        backend: asked in place of the built-in rules; None if there is none.
    """

    def __init__(self, rule: ChannelRule | None = None, backend: Backend | None = None) -> None:
        self._rule = rule
        self._backend = backend

    async def person(self, asker: Asker, channel: str) -> Person | None:
        """Decide whether somebody may be in a channel.

        Returns:
            The member that they are in it; None unless it is a presence channel.

        Raises:
            ForbiddenError: they may not be in it.
            UnavailableError: the backend cannot be asked now.
        """
        kind, identity = kind_of(channel), asker.identity
        if self._rule is not None and identity is not None:
            answer = await self._ask_rule(self._rule, identity, channel)
            if answer is False:
                raise ForbiddenError(f"{channel} is not for this user")
            if answer is not None:
                info = answer if isinstance(answer, Mapping) else None
                return person_of(identity, info) if kind is Kind.PRESENCE else None
        if kind is Kind.PUBLIC:
            return None
        if self._backend is not None:
            return await self._backend.ask(asker, channel)
        if identity is None:
            raise ForbiddenError(f"{channel} needs a token; send one with the connection")
        if not is_allowed(identity, channel):
            raise ForbiddenError(_why_not(channel))
        return person_of(identity) if kind is Kind.PRESENCE else None

    async def _ask_rule(self, rule: ChannelRule, identity: Identity, channel: str) -> bool | Mapping[str, Any] | None:
        try:
            answer = rule(identity, channel)
            if inspect.isawaitable(answer):
                answer = await answer
        except Exception:
            _log.exception("channel_auth raised an error; the user is not let in", channel=channel)
            raise ForbiddenError(f"{channel} cannot be entered now") from None
        if answer is None or isinstance(answer, bool | Mapping):
            return answer
        _log.error("channel_auth returns True, False, None or a mapping", returned=type(answer).__name__)
        raise ForbiddenError(f"{channel} cannot be entered now")


def is_allowed(identity: Identity, channel: str) -> bool:
    """The built-in rules: whether a user may be in a channel."""
    if kind_of(channel) is not Kind.PRIVATE:
        return True
    if is_of_user(channel):
        return channel == user_channel(identity.user_id)
    if is_conversation(channel):
        return identity.user_id in (parties_in(channel) or ())
    return channel == "private-admin" and identity.profile.role == ADMIN


def _why_not(channel: str) -> str:
    """The message for a user whom the built-in rules refuse."""
    if is_conversation(channel) and parties_in(channel) is None:
        return f"{channel} is of no two users: a conversation is named by their ids, as alice-bob"
    if not is_conversation(channel) and not is_of_user(channel) and channel != "private-admin":
        return f"{channel} is for nobody until channel_auth or CHANNEL_AUTH_URL says for whom"
    return f"{channel} is not for this user"


def person_of(identity: Identity, info: object = None) -> Person:
    """A user as a member of a presence channel.

    Args:
        identity: who.
        info: what other members are told besides the id; None for what the user's token says.

    Raises:
        InvalidPayloadError: `info` is too large, or not JSON.
    """
    profile = identity.profile
    if info is not None:
        profile = msgspec.structs.replace(profile, info_json=info_of(info))
    return Person(user_id=identity.user_id, profile=profile)


def person_named(user_id: object, info: object = None) -> Person:
    """A member whom a signature or a backend vouches for: Pusher's ``channel_data``.

    Args:
        user_id: who; a number is turned into its decimal string.
        info: what other members are told besides the id; None for nothing.

    Raises:
        InvalidPayloadError: the id is not valid, or `info` is too large or not JSON.
    """
    if isinstance(user_id, int) and not isinstance(user_id, bool):
        user_id = str(user_id)
    if not is_id(user_id):
        raise InvalidPayloadError("channel_data takes a user_id of 1 to 128 characters without control characters")
    return Person(user_id=user_id, profile=Profile(info_json=info_of({} if info is None else info)))


def info_of(info: object) -> str:
    """Encode a member's information as JSON.

    Raises:
        InvalidPayloadError: it is larger than `MAX_INFO`, nested too deep, or not JSON.
    """
    text = encode_given(info, "what is said of a member")
    if len(text) > MAX_INFO:
        raise InvalidPayloadError(f"what is said of a member may have {MAX_INFO} bytes; this has {len(text)}")
    return text.decode()


def unavailable(error: object) -> UnavailableError:
    """The error for a client if the backend cannot be asked."""
    return UnavailableError(f"whoever authorizes channels cannot be asked now: {error}")
