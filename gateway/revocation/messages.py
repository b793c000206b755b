"""What a backend says and hears of revoked tokens, over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from gateway.revocation.revocations import MAX_JTI
from gateway.wire import Body, Timestamp, UserId


class RevokeTokens(Body):
    """Which tokens to refuse from now on: one of `jti`, `userId` and `allUsers`."""

    jti: Annotated[str, Meta(min_length=1, max_length=MAX_JTI, description="The one token of this id.")] | None = None
    user_id: UserId | None = None
    """All tokens of this user that were issued before `issuedBefore`."""
    all_users: bool = False
    """The same of everyone of the tenant."""
    issued_before: Annotated[
        datetime | None, Meta(description="Now, where it is left out. A token that does not say counts as before.")
    ] = None
    expires_at: Annotated[
        datetime | None,
        Meta(description="When the last of them expires; REVOCATION_TTL from now where it is left out."),
    ] = None


class Revoked(Body):
    """What was revoked."""

    revoked: bool
    expires_at: Timestamp
    """Until then it is remembered."""
