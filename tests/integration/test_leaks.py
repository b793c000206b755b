"""Nothing leaks: whoever may not be seen cannot be told from one who is not there, by any question through any door.

One table of doors and questions, asked of somebody who hides and of a twin who has nothing to hide, in one moment.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import FrameType
from typing import Any, NamedTuple

import aiohttp
import msgspec
import pytest
from aiohttp import web
from clients import Client, Plain, abort
from conftest import SERVICE_KEY, Clock, Running, eventually, make_settings, make_token
from redis_servers import fresh_prefix
from test_sessions import Tab

from gateway import Gateway
from gateway.app import create_app
from gateway.connections.live import LiveConnection
from gateway.presence.model import Transition

HIDES, TWIN, THIRD = "alice", "gone1", "third"
"""Who must not be seen, who is as one who is not there, and who looks. The first two are of one length."""


class World:
    """A gateway whose time the test makes, and a third user's eyes and ears."""

    def __init__(self, running: Running, clock: Clock) -> None:
        self.running = running
        self.clock = clock
        self.hooks: list[Transition] = []
        self.socketio: Client
        self.watcher: Client | None = None
        self.websocket: Plain
        self.http: HTTP
        self.service: HTTP


class HTTP:
    """What one caller is answered over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, headers: dict[str, str]) -> None:
        self.session = session
        self.headers = headers

    async def __call__(self, method: str, path: str, payload: object = None) -> Any:
        async with self.session.request(method, path, headers=self.headers, json=payload) as response:
            kept = {name: value for name, value in response.headers.items() if name not in {"Date", "Content-Length"}}
            return response.status, kept, await response.json(content_type=None)


class Question(NamedTuple):
    door: str
    name: str
    ask: Callable[[World, str], Awaitable[Any]]


def _events(event: str, payload: Callable[[str], Any]) -> list[Question]:
    name = f"{event} {payload('someone')}"
    return [
        Question("socketio", name, lambda world, user: world.socketio.ask(event, payload(user))),
        Question("websocket", name, lambda world, user: world.websocket.ask(event, payload(user))),
    ]


def _http(method: str, path: str, payload: Callable[[str], Any] = lambda _user: None) -> list[Question]:
    name = f"{method} {path}"
    return [
        Question("http", name, lambda world, user: world.http(method, path.format(user), payload(user))),
        Question("service", name, lambda world, user: world.service(method, path.format(user), payload(user))),
    ]


def _in_process(name: str, ask: Callable[[Gateway, str], Any]) -> Question:
    async def answer(world: World, user: str) -> Any:
        return repr(ask(world.running.gateway, user))

    return Question("process", name, answer)


QUESTIONS: list[Question] = [
    *_events("check-user-status", lambda user: {"userId": user}),
    *_events("check-users-status", lambda user: {"userIds": [user, "nobody", user]}),
    *_events("get-online-users", lambda _user: None),
    *_events("get-online-users", lambda _user: {"limit": 1}),
    *_events("get-online-users", lambda _user: {"cursor": "YQ"}),
    *_events("watch-users", lambda user: {"userIds": [user]}),
    *_events("unwatch-users", lambda user: {"userIds": [user]}),
    *_events("check-user-status", lambda user: {"userId": [user]}),
    *_events("check-users-status", lambda user: {"userIds": [user, ""]}),
    *_events("watch-users", lambda user: {"userIds": [user + str(n) for n in range(1001)]}),
    *_events("explain", lambda user: {"userId": user}),
    *_http("GET", "/online-status?ids={},third"),
    *_http("GET", "/online-status?ids={},"),
    *_http("GET", "/api/users/online"),
    *_http("GET", "/api/users/online?limit=1"),
    *_http("GET", "/api/users/online?cursor=YQ"),
    *_http("GET", "/api/users/online?cursor={}"),
    *_http("GET", "/api/users/{}/online-status"),
    *_http("GET", "/api/users/{}/online-status?tenant=other")[:1],
    *_http("GET", "/api/users/{}/explain")[:1],
    *_http("GET", "/api/users/{}/sessions")[:1],
    *_http("GET", "/api/users/{}/nothing"),
    *_http("DELETE", "/api/users/{}/connections")[:1],
    *_http("POST", "/presence/offline", lambda user: {"userId": user})[:1],
    *_http("POST", "/presence/online", lambda user: {"userId": user})[:1],
    *_http("POST", "/api/notifications", lambda user: {"userId": user, "event": "x"})[:1],
    _in_process("status", lambda gateway, user: gateway.presence.status(user)),
    _in_process("statuses", lambda gateway, user: gateway.presence.statuses([user])),
    _in_process("online_users", lambda gateway, _user: gateway.presence.online_users()),
    _in_process("online_count", lambda gateway, _user: gateway.presence.online_count()),
]

PEOPLE = {"socketio", "websocket", "http"}
"""The doors of users. A service, and the application, see everyone but those who are invisible."""


def normal(value: Any) -> Any:
    """What was told of either, as if they had one name."""
    if isinstance(value, dict):
        return {name: normal(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [normal(each) for each in value]
    return value.replace(HIDES, "someone").replace(TWIN, "someone") if isinstance(value, str) else value


async def open_world(closing: AsyncExitStack, clock: Clock, **options: Any) -> World:
    rules = {name: options.pop(name) for name in ("visibility", "visibility_of") if name in options}
    gateway = Gateway(make_settings(**options), clock=clock, **rules)
    hooks: list[Transition] = []

    async def note(transition: Transition) -> None:
        hooks.append(transition)

    for event in ("user-online", "user-offline", "user-status-changed"):
        gateway.on(event)(note)
    runner = web.AppRunner(create_app(gateway), access_log=None, shutdown_timeout=1)
    await runner.setup()
    closing.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    world = World(Running(gateway, f"http://{host}:{port}", runner), clock)
    world.hooks = hooks
    session = await closing.enter_async_context(aiohttp.ClientSession(world.running.url))
    world.http = HTTP(session, {"Authorization": f"Bearer {make_token(THIRD)}"})
    world.service = HTTP(session, {"X-API-Key": SERVICE_KEY})
    await look(closing, world)
    return world


async def look(closing: AsyncExitStack, world: World) -> None:
    """Open the third user's connections."""
    world.socketio = await Client.connect(closing, world.running.url, THIRD)
    world.websocket = await Plain.connect(closing, world.running.ws_url, THIRD)


async def live(closing: AsyncExitStack, world: World, user: str, tenant: str = "default") -> None:
    """All that one can do who is there."""
    gateway, clock = world.running, world.clock
    token = make_token(user, tenant=tenant, name="Secret", avatar="/secret.png", role="secret")
    client = await Client.connect(closing, gateway.url, user, auth={"token": token})
    await client.ask("heartbeat", {"meta": {"page": "secret"}})
    clock.advance(s=1)
    session = await closing.enter_async_context(aiohttp.ClientSession(gateway.url))
    http = HTTP(session, {"Authorization": f"Bearer {token}"})
    tab = await Plain.open(closing, f"{gateway.ws_url}/ws?token={token}")
    await tab.ask("heartbeat")
    await http("POST", "/presence/heartbeat", {"meta": {"page": "secret phone"}})
    await gateway.gateway.presence.heartbeat(user, meta={"page": "secret app"}, tenant=tenant)
    clock.advance(s=1)
    await tab.ws.close()
    await client.ask("check-user-status", {"userId": THIRD})
    await client.ask("watch-users", {"userIds": [THIRD]})
    await asyncio.sleep(0.1)


# Each hides the one, arranges the twin, and says through which doors they must look alike.


async def invisible(closing: AsyncExitStack, world: World) -> set[str]:
    """Who turned invisible, and who left in the same moment."""
    gateway, clock, third = world.running, world.clock, world.socketio
    alice, gone = [
        await Client.connect(closing, gateway.url, user, auth={"token": make_token(user, name="N")})
        for user in (HIDES, TWIN)
    ]
    listeners = [third] if world.watcher is None else [third, world.watcher]

    async def told(event: str) -> None:
        """Each is told the net effect of a while: let it be over, or what they are told differs by chance."""
        for listener in listeners:
            for user in (HIDES, TWIN):
                await listener.hears(event, userId=user)

    await told("user-online")
    for client in (alice, gone):
        await client.ask("heartbeat", {"meta": {"page": "home"}})
        await client.ask("set-status", {"status": "busy", "statusText": "in a call"})
    await told("user-status-changed")
    clock.advance(s=1)
    await alice.ask("set-status", {"status": "invisible", "statusText": "secret"})
    await gone.leave()
    for user in (HIDES, TWIN):
        await third.hears("user-offline", userId=user)
    clock.advance(s=1)
    await live(closing, world, HIDES)
    await alice.ask("set-status", {"status": "invisible", "statusText": "secret again", "expiresIn": 600})
    return {"socketio", "websocket", "http", "service", "process"}


async def invisible_from_the_first(closing: AsyncExitStack, world: World) -> set[str]:
    """Who was never seen but invisible, and who was never there."""
    await world.running.gateway.presence.set_status(HIDES, "invisible", "secret")
    await live(closing, world, HIDES)
    return {"socketio", "websocket", "http", "service", "process"}


async def of_another_tenant(closing: AsyncExitStack, world: World) -> set[str]:
    """Who is another tenant's, and who was never there."""
    await live(closing, world, HIDES, "other")
    return {"socketio", "websocket", "http", "service", "process"}


async def hidden_by_a_rule(closing: AsyncExitStack, world: World) -> set[str]:
    """Whom the application lets not be seen, and who was never there."""
    await live(closing, world, HIDES)
    await world.running.gateway.presence.set_status(HIDES, "busy", "secret")
    return PEOPLE


def _rule(viewer: str, user: str) -> bool:
    return not (viewer == THIRD and user == HIDES)


def _batch(viewer: str, users: list[str]) -> list[str]:
    return [user for user in users if _rule(viewer, user)]


Hide = Callable[[AsyncExitStack, World], Awaitable[set[str]]]
WAYS: dict[str, tuple[Hide, dict[str, Any]]] = {
    "invisible": (invisible, {}),
    "invisible, with a rule": (invisible, {"visibility": lambda _viewer, _user: True}),
    "invisible from the first": (invisible_from_the_first, {}),
    "of another tenant": (of_another_tenant, {}),
    "hidden by a rule": (hidden_by_a_rule, {"visibility": _rule}),
    "hidden by a rule for many": (hidden_by_a_rule, {"visibility_of": _batch}),
}


@pytest.mark.parametrize("redis", [False, True], ids=["memory", "redis"])
@pytest.mark.parametrize("way", WAYS)
async def test_whoever_may_not_be_seen_cannot_be_told_from_one_who_is_not_there(
    closing: AsyncExitStack, clock: Clock, redis_url: str, way: str, *, redis: bool
) -> None:
    hide, options = WAYS[way]
    store = {"redis_url": redis_url, "redis_prefix": fresh_prefix()} if redis else {}
    world = await open_world(closing, clock, **store, **options)
    world.watcher = watcher = await Client.connect(closing, world.running.url, THIRD)
    await watcher.ask("watch-users", {"userIds": [HIDES, TWIN]})
    lost = await Tab.open(closing, world.running, THIRD)
    before = await Client.connect(closing, world.running.url, "before")
    assert (await lost.event())[1]["userId"] == "before"
    abort(lost.packets.ws)

    doors = await hide(closing, world)
    clock.advance(s=30)
    await asyncio.sleep(0.6)  # some sweeps

    # Asked
    for question in QUESTIONS:
        if question.door in doors:
            of_one, of_twin = normal(await question.ask(world, HIDES)), normal(await question.ask(world, TWIN))
            assert of_one == of_twin, (question.door, question.name)
            assert "ecret" not in repr(of_one), (question.door, question.name)
    listed = await world.http("GET", "/api/users/online")
    assert (sorted(user["userId"] for user in listed[2]["users"]), listed[2]["count"]) == (["before", THIRD], 2)

    # Heard: by everyone, by who watches, and by who was away
    back = await lost.back(closing, world.running, THIRD)
    await before.leave()
    missed = []
    while (event := await back.event())[1]["userId"] != "before":
        missed.append(event)
    assert back.pid == lost.pid
    for ears in (world.socketio.heard, world.websocket.heard, watcher.heard, [tuple(each) for each in missed]):
        heard = {
            user: [(name, normal(data)) for name, data in ears if isinstance(data, dict) and data.get("userId") == user]
            for user in (HIDES, TWIN)
        }
        assert heard[HIDES] == heard[TWIN]
        assert "ecret" not in repr(heard)
        assert bool(heard[HIDES]) is (hide is invisible)

    # And by the application, of those who are invisible
    if "process" in doors:
        said = {
            user: [
                msgspec.structs.replace(each, position=0, now=msgspec.structs.replace(each.now, user_id="someone"))
                for each in world.hooks
                if (each.tenant, each.user_id) == ("default", user)
            ]
            for user in (HIDES, TWIN)
        }
        assert said[HIDES] == said[TWIN]


async def test_coming_back_is_the_next_version(closing: AsyncExitStack, clock: Clock) -> None:
    world = await open_world(closing, clock)
    await invisible(closing, world)
    version = (await world.socketio.status(HIDES))["version"]
    await world.running.gateway.presence.set_status(HIDES, "online")
    await world.socketio.hears("user-online", userId=HIDES, status="online", version=version + 1)


def lines_run(call: Callable[[], object]) -> list[tuple[str, int]]:
    """Every line of the gateway that a call runs, in order."""
    found: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if "/gateway/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            found.append((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return found


@pytest.mark.parametrize("rule", [None, lambda _viewer, _user: True])
async def test_an_answer_takes_as_long_because_it_takes_the_same_way(
    closing: AsyncExitStack, clock: Clock, rule: Any
) -> None:
    world = await open_world(closing, clock, visibility=rule)
    await invisible(closing, world)
    requests = world.running.gateway._requests
    asking: LiveConnection = world.running.gateway._connections.of_user("default", THIRD)[0]
    for event in ("check-user-status", "check-users-status", "watch-users"):
        ways = []
        for user in (HIDES, TWIN):
            payload = {"userId": user} if event == "check-user-status" else {"userIds": [user]}
            requests.answer(asking, event, payload)  # what is encoded is kept, for one as for the other
            clock.advance(ms=1)
            ways.append(lines_run(lambda event=event, payload=payload: requests.answer(asking, event, payload)))  # type: ignore[misc]
        assert ways[0] == ways[1]
    sight = world.running.gateway._sight
    for read in (
        lambda user: sight.statuses("default", THIRD, [user], clock()),
        lambda user: sight.statuses("default", None, [user], clock()),
        world.running.gateway.presence.status,
    ):
        assert lines_run(lambda read=read: read(HIDES)) == lines_run(lambda read=read: read(TWIN))  # type: ignore[misc]
    assert lines_run(lambda: sight.statuses("default", THIRD, [HIDES], clock()))


async def test_one_who_is_hidden_is_not_found_out_by_oneself(closing: AsyncExitStack, clock: Clock) -> None:
    world = await open_world(closing, clock, visibility=_rule)
    alice = await Client.connect(closing, world.running.url, HIDES)
    assert (await alice.status(HIDES))["online"]
    assert (await alice.status(THIRD))["online"]
    assert [name for name, _, _ in alice.presence(THIRD)] == []
    await eventually(lambda: world.running.gateway.presence.status(HIDES).online)
