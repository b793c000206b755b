"""What describes the events is what the doors take and say, and what stands in the files."""

import ast
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from conftest import ROOT, make_settings

from gateway import Gateway
from gateway.__main__ import main
from gateway.channels import events as channel_events
from gateway.channels.changes import MEMBER_EVENTS
from gateway.errors import REFUSAL_CODES
from gateway.presence.model import Event
from gateway.schema.asyncapi import as_json, asyncapi
from gateway.schema.events import EVENTS, REQUESTS
from gateway.schema.shapes import shapes
from gateway.schema.typescript import typescript
from gateway.version import __version__
from gateway.wire import OWN_EVENTS

SPECIFICATION = ROOT / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0-without-$id.json"
TYPES, DOCUMENT = ROOT / "static" / "presence-events.d.ts", ROOT / "static" / "asyncapi.json"


def test_every_request_that_the_doors_take_is_described_as_they_take_it() -> None:
    taken = {
        name: (row.payload, row.answer, row.empty is not None)
        for name, row in Gateway(make_settings())._requests._table.items()
    }
    described = {name: (request.payload, request.answer, request.bare) for name, request in REQUESTS.items()}
    assert described == taken, "gateway/schema/events.py describes every request; then: make generate"


def names_said(path: Any) -> Iterator[str]:
    """The names that a module gives to what tells a client something."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute):
            first = node.args[0]
            if node.func.attr in {"emit", "_encode", "opening"} and isinstance(first, ast.Constant):
                yield str(first.value)


def test_every_event_that_the_gateway_says_is_described() -> None:
    said = {name for path in (ROOT / "gateway").rglob("*.py") for name in names_said(path)}
    assert {"connected", "server-draining", "token-expired", "exception", "channel-left", "channel-members"} <= said
    said |= OWN_EVENTS - {"error"}  # which is an answer
    said |= {*map(str, Event), *MEMBER_EVENTS.values()}
    said |= {name for key, name in vars(channel_events).items() if key.isupper() and isinstance(name, str)}
    said -= {channel_events.USER_STATUS}  # of Laravel's and Pusher's clients
    said = {name for name in said if not re.match(r"presence:|subscription_", name)}  # Laravel Echo's
    assert set(EVENTS) == said | {"notification"}, "gateway/schema/events.py describes every event; then: make generate"


@pytest.mark.parametrize(
    ("kind", "path", "write"),
    [("types", TYPES, typescript), ("asyncapi", DOCUMENT, as_json)],
    ids=["types", "asyncapi"],
)
def test_the_files_are_what_is_generated(kind: str, path: Any, write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert path.read_text() == write(), "make generate"
    assert main(["schema", kind]) == 0
    assert capsys.readouterr().out == write()


def test_it_is_an_asyncapi_document() -> None:
    if not SPECIFICATION.is_file():
        message = "@asyncapi/specs is not installed: npm ci"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    document = json.loads(as_json())
    jsonschema.Draft7Validator(json.loads(SPECIFICATION.read_text())).validate(document)
    assert (document["asyncapi"], document["info"]["version"]) == ("3.0.0", __version__)


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for each in part.values():
            yield from references(each)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def test_whatever_is_referred_to_is_there_and_nothing_is_there_for_nothing() -> None:
    document = asyncapi()
    found = set(references(document))
    for reference in found:
        part: Any = document
        for step in reference.removeprefix("#/").split("/"):
            part = part[step]
    described = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert described - found == {"#/components/schemas/Refusal"}  # of a connect_error, which is no message


def test_every_event_name_is_in_both() -> None:
    document, types = asyncapi(), typescript()
    names = {*REQUESTS, *EVENTS}
    operations = document["operations"]
    assert {name for name, row in operations.items() if row["channel"]["$ref"] == "#/channels/socketio"} == names
    assert {name for name in REQUESTS if operations[name]["action"] == "receive"} == set(REQUESTS)
    assert {name for name in EVENTS if operations[name]["action"] == "send"} == set(EVENTS)
    answers = {request.answer for request in REQUESTS.values()} | {"error"}
    assert set(document["channels"]["socketio"]["messages"]) == names | answers
    assert set(re.findall(r'^  "([a-z-]+)": ', types, re.MULTILINE)) == names


def test_what_code_says_beyond_annotations_is_described() -> None:
    found = shapes()
    assert found["UnwatchUsers"]["properties"]["userIds"]["description"] == "Null for all."
    version = "Grows by one with each committed change of this user."  # of a type that it comes from
    assert found["OwnUserStatus"]["properties"]["version"]["description"] == version
    assert found["RefusalCode"]["enum"] == list(REFUSAL_CODES)
    assert {"RATE_LIMITED", "FORBIDDEN", "INTERNAL", "UNKNOWN_EVENT"} <= set(found["ErrorCode"]["enum"])
    assert found["Failure"]["required"] == ["event", "error"]
