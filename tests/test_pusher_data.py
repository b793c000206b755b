"""An event's data on its way from Pusher's world and back."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.channels.model import Said
from gateway.pusher.data import from_text, to_text
from gateway.pusher.frames import said_in
from gateway.wire import MAX_NESTING

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def _refuse(constant: str) -> object:
    raise ValueError(constant)


def as_pusher_js_has_it(text: str) -> object:
    """What pusher-js hands to whoever listens."""
    try:
        return json.loads(text, parse_constant=_refuse)  # JavaScript's JSON has no NaN
    except ValueError:
        return text


@pytest.mark.parametrize(
    ("text", "is_json"),
    [
        ('{"b": 1,  "a": [1.50, "\\u00e9"]}', True),
        ("5", True),
        ("null", True),
        ('"5"', True),
        ("hello", False),
        ("", False),
        ("{not json", False),
        ("1e999", False),
        ('"\\ud800"', False),
        ("[" * (MAX_NESTING + 1) + "]" * (MAX_NESTING + 1), False),
    ],
)
def test_a_text_comes_back_as_it_was_and_is_its_json_where_it_is_any(text: str, *, is_json: bool) -> None:
    data = from_text(text)
    assert to_text(data) == text
    assert bytes(data) == (text.encode() if is_json else msgspec.json.encode(text))


def test_the_one_that_is_not_exact() -> None:
    assert to_text(from_text('"hello"')) == "hello"
    assert as_pusher_js_has_it('"hello"') == as_pusher_js_has_it("hello")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_the_same_to_pusher_js(text: str) -> None:
    assert as_pusher_js_has_it(to_text(from_text(text))) == as_pusher_js_has_it(text)


@given(JSON)
def test_any_json_is_the_same_to_pusher_js_and_to_everyone_else(value: object) -> None:
    text = json.dumps(value)
    try:
        text.encode()
        msgspec.json.decode(text)
    except ValueError:
        return
    assert json.loads(bytes(from_text(text))) == value
    assert as_pusher_js_has_it(to_text(from_text(text))) == value


@given(JSON)
def test_what_a_client_said_as_json_reaches_pusher_js_as_that(value: object) -> None:
    try:
        raw = msgspec.Raw(msgspec.json.encode(value))
    except ValueError:
        return
    assert as_pusher_js_has_it(to_text(raw)) == value


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        from_text("\ud800")


@pytest.mark.parametrize(
    ("event", "name"),
    [("new-message", "message.sent"), ("message-read", "message.read"), ("user-typing", "user.typing"), ("any", "any")],
)
def test_messages_have_the_names_that_laravel_gives_them(event: str, name: str) -> None:
    said = Said(
        tenant="acme",
        channel="room-5",
        event=event,
        data=msgspec.Raw(b'{"n":1}'),
        sender=None,
        source=None,
        keep=True,
        position=1,
        at=0,
    )
    assert json.loads(said_in(said)) == {"event": name, "channel": "room-5", "data": '{"n":1}'}
