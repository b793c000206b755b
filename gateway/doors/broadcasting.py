"""``/broadcasting/auth`` for those without a Laravel: signs, for a Pusher client, what its user may join."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import UNSET, Meta, UnsetType

from gateway import wire
from gateway.channels.model import Asker
from gateway.channels.names import Kind, is_encrypted, kind_of
from gateway.channels.wire import ChannelName
from gateway.doors.http import Call, Caller, Operation
from gateway.errors import ForbiddenError
from gateway.presence.model import DEFAULT_TENANT

if TYPE_CHECKING:
    from gateway.access.auth import Identity
    from gateway.channels.authorization import Authorizer
    from gateway.pusher.signature import Signer

SocketId = Annotated[str, Meta(pattern=r"^[0-9]{1,20}\.[0-9]{1,20}$(?!\n)", examples=["123.456"])]
"""Pusher's: one of another form could make a signature for one thing into that of another."""


class AuthorizeChannel(wire.Body, rename=None):
    """Which channel a connection is to join; as a form, or as JSON."""

    socket_id: SocketId
    channel_name: ChannelName


class AuthorizedChannel(wire.Body, omit_defaults=True, rename=None):
    """What the client subscribes with."""

    auth: str
    channel_data: str | UnsetType = UNSET
    """Of a presence channel: JSON of ``user_id`` and ``user_info``."""
    shared_secret: str | UnsetType = UNSET
    """Of an encrypted channel: what is said in it is read with this, in base64."""


class AuthenticateUser(wire.Body, rename=None):
    """Which connection is to be its user's; as a form, or as JSON."""

    socket_id: SocketId


class AuthenticatedUser(wire.Body, rename=None):
    """What the client signs in with."""

    auth: str
    user_data: str
    """JSON of ``id`` and ``user_info``."""


def broadcasting_operations(signer: Signer, authorizer: Authorizer) -> tuple[Operation, ...]:
    """The rows of the HTTP door's table that sign for Pusher's clients.

    Args:
        signer: what knows the application's secret.
        authorizer: who may be in which channel.
    """
    door = _Broadcasting(signer, authorizer)
    return (
        Operation(
            method="POST",
            path="/broadcasting/auth",
            summary="Sign, for a Pusher client, that the calling user may join a channel",
            caller=Caller.USER,
            body=AuthorizeChannel,
            form=True,
            answers=AuthorizedChannel,
            handler=door.authorize,
        ),
        Operation(
            method="POST",
            path="/broadcasting/user-auth",
            summary="Sign, for a Pusher client, who the calling user is",
            caller=Caller.USER,
            body=AuthenticateUser,
            form=True,
            answers=AuthenticatedUser,
            handler=door.authenticate,
        ),
    )


class _Broadcasting:
    """The handlers of these operations."""

    def __init__(self, signer: Signer, authorizer: Authorizer) -> None:
        self._signer = signer
        self._authorizer = authorizer

    async def authorize(self, call: Call) -> AuthorizedChannel:
        identity = _user(call)
        channel, socket_id = call.body.channel_name, call.body.socket_id
        if kind_of(channel) is Kind.PUBLIC:
            raise ForbiddenError(f"{channel} is open to everyone, and takes no signature")
        asker = Asker(tenant=call.tenant, connection_id=socket_id, identity=identity, headers=call.headers)
        person = await self._authorizer.person(asker, channel)
        if person is None:
            auth = self._signer.channel_auth(socket_id, channel)
            return AuthorizedChannel(auth, shared_secret=self._shared_secret(channel))
        data = wire.encode({"user_id": person.user_id, "user_info": person.info}).decode()
        return AuthorizedChannel(self._signer.channel_auth(socket_id, channel, data), data)

    def _shared_secret(self, channel: str) -> str | UnsetType:
        """What a client reads an encrypted channel with; UNSET of one that is not encrypted.

        Raises:
            ForbiddenError: nobody here knows it. Without it a client would be in the channel and understand nothing.
        """
        if not is_encrypted(channel):
            return UNSET
        secret = self._signer.shared_secret(channel)
        if secret is None:
            raise ForbiddenError(
                f"{channel} is encrypted, and this gateway has no key for it: set PUSHER_ENCRYPTION_MASTER_KEY_BASE64"
                " to the backend's master key, or let the backend sign"
            )
        return secret

    async def authenticate(self, call: Call) -> AuthenticatedUser:
        identity = _user(call)
        data = wire.encode({"id": identity.user_id, "user_info": identity.profile}).decode()
        return AuthenticatedUser(self._signer.user_auth(call.body.socket_id, data), data)


def _user(call: Call) -> Identity:
    assert call.identity is not None  # noqa: S101 - Caller.USER says so
    if call.tenant != DEFAULT_TENANT:  # a signature says nothing of a tenant
        raise ForbiddenError(f"the Pusher application is of the tenant {DEFAULT_TENANT!r}, and this user is not")
    return call.identity
