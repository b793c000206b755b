"""What is said in channels, by each door's name, and whose native connections hear it without being there."""

from __future__ import annotations

import msgspec
import pytest

from gateway.channels.events import LARAVEL_NAMES, heard_by, laravel_name, native_name
from gateway.channels.model import Said
from gateway.channels.names import conversation_of


def said(channel: str, event: str = "new-message", sender: str | None = "alice") -> Said:
    return Said(tenant="acme", channel=channel, event=event, data=msgspec.Raw(b"{}"), sender=sender, position=1, at=0)


def test_each_name_has_its_other_and_others_stay() -> None:
    assert LARAVEL_NAMES == {
        "new-message": "message.sent",
        "message-read": "message.read",
        "user-typing": "user.typing",
    }
    for native, laravel in LARAVEL_NAMES.items():
        assert (laravel_name(native), native_name(laravel)) == (laravel, native)
        assert (laravel_name(laravel), native_name(native)) == (laravel, native)
    assert laravel_name("order.shipped") == native_name("order.shipped") == "order.shipped"


@pytest.mark.parametrize(
    ("channel", "event", "sender", "users"),
    [
        ("private-user.bob", "order.shipped", None, {"bob"}),
        ("private-user.bob", "client-x", "bob", {"bob"}),
        ("private-user.bob", "new-message", None, {"bob"}),
        ("private-user.bob", "message.sent", None, {"bob"}),
        ("private-user.bob", "new-message", "alice", set()),  # they hear it in the conversation
        ("private-user.b-ob", "new-message", "alice", {"b-ob", "alice"}),  # there can be none
        ("private-conversation.alice-bob", "new-message", "alice", {"alice", "bob"}),
        ("private-conversation.alice-bob", "message-read", "bob", {"alice", "bob"}),
        ("private-conversation.alice-alice", "new-message", "alice", {"alice"}),
        ("private-conversation.alice-bob", "user-typing", "alice", set()),
        ("private-conversation.alice-bob", "message.sent", None, set()),
        ("private-conversation.bob-carol", "new-message", "alice", set()),
        ("private-conversation.group", "new-message", "alice", set()),
        ("room-5", "new-message", "alice", set()),
    ],
)
def test_what_is_for_users_is_heard_by_them(channel: str, event: str, sender: str | None, users: set[str]) -> None:
    heard = heard_by(said(channel, event, sender))
    assert (set(heard), len(heard)) == (users, len(users))


def test_two_ids_that_are_one_number_have_one_conversation() -> None:
    assert conversation_of("5", "05") == conversation_of("05", "5") == "05-5"
