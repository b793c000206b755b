"""Who is refused by the rules that are built in is told why, and what would let them in."""

import pytest

from gateway.access.auth import Identity
from gateway.channels.authorization import Authorizer
from gateway.channels.model import Asker
from gateway.errors import ForbiddenError
from gateway.presence.model import Profile


@pytest.mark.parametrize(
    ("channel", "says"),
    [
        ("private-orders.1", "is for nobody until channel_auth or CHANNEL_AUTH_URL says for whom"),
        ("private-conversation.bob", "is of no two users: a conversation is named by their ids, as alice-bob"),
        ("private-conversation.bob-carol", "is not for this user"),
        ("private-user.bob", "is not for this user"),
        ("private-admin", "is not for this user"),
    ],
)
async def test_a_refusal_says_what_would_let_in(channel: str, says: str) -> None:
    alice = Identity(tenant="default", user_id="alice", profile=Profile(), expires_at=None)
    asker = Asker(tenant="default", connection_id="c", identity=alice)
    with pytest.raises(ForbiddenError) as caught:
        await Authorizer().person(asker, channel)
    assert str(caught.value) == f"{channel} {says}"
