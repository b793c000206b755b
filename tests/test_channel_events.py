"""What is said in channels, by each door's name, and whose native connections hear it without being there."""

from __future__ import annotations

import msgspec
import pytest

from gateway.access.auth import Identity
from gateway.channels.authorization import is_allowed
from gateway.channels.events import LARAVEL_NAMES, heard_by, laravel_name, native_name
from gateway.channels.model import Said
from gateway.channels.names import (
    channel_between,
    conversation_of,
    is_conversation,
    is_name,
    is_of_user,
    owner_of,
    parties_in,
    unescape,
    user_channel,
)
from gateway.errors import InvalidPayloadError
from gateway.presence.model import NOBODY

LONG, LONGER = "l" * 100, "m-" + "m" * 60


def identity(user: str) -> Identity:
    return Identity(tenant="acme", user_id=user, profile=NOBODY, expires_at=None)


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
        ("private-user.b-ob", "new-message", "alice", set()),
        (f"private-user.{LONG}", "new-message", LONGER, {LONG, LONGER}),  # there can be none
        ("private-user=.b=20ob", "order.shipped", None, {"b ob"}),
        ("private-user=.b=20ob", "new-message", "alice", set()),
        ("private-user=.bob", "order.shipped", None, set()),  # his has another name
        ("private-conversation=.alice-b=20ob", "new-message", "alice", {"alice", "b ob"}),
        ("private-conversation=.alice-b=2Dob", "message-read", "b-ob", {"alice", "b-ob"}),
        ("private-conversation=.b=20ob-alice", "new-message", "alice", set()),  # nor has this one this name
        ("private-conversation=.alice-bob", "new-message", "alice", set()),
        ("private-conversation=.alice-b=2", "new-message", "alice", set()),
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


# What names do not say is what they are for as they are.
AS_THEY_ARE = ["5", "alice", "a-b", "a=20b", "=.a", "x" * 128, "A9_-=@,.;:"]
ESCAPED = ["a b", "a+b@x.org", "é", "用户", "a/b", "%", "a|b", "~", " ", "-+"]
HASHED = [" " * 128, "用" * 20, "💬" * 128]


@pytest.mark.parametrize("user", [*AS_THEY_ARE, *ESCAPED, *HASHED])
def test_every_user_has_a_channel_of_their_own_that_nobody_else_may_enter(user: str) -> None:
    channel = user_channel(user)
    assert is_name(channel)
    assert is_of_user(channel)
    assert (channel == f"private-user.{user}") is (user in AS_THEY_ARE)
    assert owner_of(channel) == (None if user in HASHED else user)
    allowed = [each for each in (*AS_THEY_ARE, *ESCAPED, *HASHED) if is_allowed(identity(each), channel)]
    assert allowed == [user]
    assert heard_by(msgspec.structs.replace(said(channel, "x", None), owner=user)) == (user,)


@pytest.mark.parametrize("one", [*AS_THEY_ARE, *ESCAPED])
@pytest.mark.parametrize("other", ["bob", "b-ob", "b+ob", "b=2Bob"])
def test_two_users_have_a_conversation_that_nobody_else_may_enter(one: str, other: str) -> None:
    channel = channel_between(one, other)
    assert channel == channel_between(other, one)
    if channel is None:
        assert len(one) > 100
        return
    assert is_name(channel)
    assert is_conversation(channel)
    assert set(parties_in(channel) or ()) == {one, other}
    try:
        assert channel == f"private-conversation.{conversation_of(one, other)}"
    except InvalidPayloadError:
        assert channel.startswith("private-conversation=.")
    users = {*AS_THEY_ARE, *ESCAPED, *HASHED, other}
    assert {each for each in users if is_allowed(identity(each), channel)} == {one, other}
    assert set(heard_by(said(channel, sender=one))) == {one, other}


@pytest.mark.parametrize("text", ["", "a-b", "=", "=2", "=2g", "=2f", "=41", "=C3", "a b", "é"])
def test_what_is_no_escaped_id_is_nobody_s(text: str) -> None:
    assert unescape(text) is None
    assert owner_of(f"private-user=.{text}") is None
    assert parties_in(f"private-conversation=.{text}-bob") is None


def test_two_ids_that_are_one_number_have_one_conversation() -> None:
    assert conversation_of("5", "05") == conversation_of("05", "5") == "05-5"
