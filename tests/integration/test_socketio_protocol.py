"""Socket.IO 5 by its own rules, packet by packet, over every transport; and what a host application asks of it."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest
from clients import NAMESPACE
from conftest import eventually, make_token
from protocol import (
    ACK,
    BINARY_ACK,
    BINARY_EVENT,
    CONNECT,
    CONNECT_ERROR,
    DISCONNECT,
    EVENT,
    TRANSPORTS,
    EndedError,
    Host,
    Hosted,
    Link,
    Serve,
    WebSocket,
    encode,
    event,
    open_link,
)

over_every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


async def joined(
    closing: AsyncExitStack, hosted: Hosted, transport: str = "websocket", namespace: str = "/"
) -> tuple[Link, str]:
    """Open a connection and join a namespace; return the session's id there."""
    link = await open_link(closing, hosted.url, transport)
    return link, await link.join(namespace)


# Connecting to a namespace


@over_every_transport
@pytest.mark.parametrize("asked", ["40", "40/chat,"], ids=["main", "another"])
async def test_a_client_joins_a_namespace(serve: Serve, closing: AsyncExitStack, asked: str, transport: str) -> None:
    hosted = await Hosted.start(serve)
    joined, other = (hosted.main, hosted.chat) if asked == "40" else (hosted.chat, hosted.main)
    link = await open_link(closing, hosted.url, transport)
    await link.send(asked)
    while (packet := await link.packet()) == "6":
        pass
    assert isinstance(packet, str)
    assert packet[: len(asked)] == asked
    sid = json.loads(packet[len(asked) :])["sid"]
    assert json.loads(packet[len(asked) :]) == {"sid": sid}
    assert joined.joined == [(sid, None)]
    assert other.joined == []


async def test_the_comma_after_a_namespace_may_be_left_out_where_nothing_follows(
    serve: Serve, closing: AsyncExitStack
) -> None:
    hosted = await Hosted.start(serve)
    link, _ = await joined(closing, hosted)
    await link.send("40/chat")
    assert (await link.message())[:2] == (CONNECT, "/chat")
    await link.send("41/chat")
    assert await link.rest() == []
    assert [reason for _, reason in hosted.chat.left] == ["client disconnect"]
    await link.send("40/nowhere")
    assert await link.message() == (CONNECT_ERROR, "/nowhere", None, {"message": "Invalid namespace"})


@over_every_transport
@pytest.mark.parametrize("namespace", ["/", "/chat"])
async def test_what_a_client_joins_with_is_given_to_the_application(
    serve: Serve, closing: AsyncExitStack, transport: str, namespace: str
) -> None:
    hosted = await Hosted.start(serve)
    link = await open_link(closing, hosted.url, transport)
    auth = {"token": 'a,b/c"d\\é', "nested": {"list": [1, None, {}]}, "": "-"}
    sid = await link.join(namespace, auth)
    assert (hosted.main if namespace == "/" else hosted.chat).joined == [(sid, auth)]


async def test_a_namespace_that_is_not_there_is_refused_and_others_may_be_joined(
    serve: Serve, closing: AsyncExitStack
) -> None:
    hosted = await Hosted.start(serve)
    link = await open_link(closing, hosted.url, "websocket")
    for packet in ('40/nowhere,{"token":"x"}', "40/chat/room,", "40/Chat,"):
        await link.send(packet)
        refusal = await link.message()
        assert refusal == (CONNECT_ERROR, packet[2:].split(",")[0], None, {"message": "Invalid namespace"})
    await link.join("/chat")
    assert await link.rest("/chat") == []


@over_every_transport
async def test_whoever_joins_the_main_namespace_and_does_not_say_who_it_is_has_to_leave(
    serve: Serve, closing: AsyncExitStack, transport: str
) -> None:
    running = await serve(handshake_timeout=1)
    link = await open_link(closing, running.url, transport)
    await link.send("40")
    kind, namespace, _id, data = await link.message()
    assert (kind, namespace, list(data)) == (CONNECT, "/", ["sid"])
    await link.send('42["subscribe",{"channel":"news"}]')
    assert await link.message() == (EVENT, "/", None, ["subscription_error", "news", 403])
    assert await link.message() == (DISCONNECT, "/", None, None)


@over_every_transport
@pytest.mark.parametrize("namespace", ["/", "/chat"])
async def test_a_refusal_says_why_and_leaves_the_connection(
    serve: Serve, closing: AsyncExitStack, transport: str, namespace: str
) -> None:
    hosted = await Hosted.start(serve)
    link = await open_link(closing, hosted.url, transport)
    for why, said in (
        (["not you"], {"message": "not you"}),
        (["not you", {"code": 5, "list": ["é"]}], {"message": "not you", "data": {"code": 5, "list": ["é"]}}),
    ):
        await link.send(*encode(CONNECT, {"refuse": why}, namespace))
        assert await link.message() == (CONNECT_ERROR, namespace, None, said)
    await link.tell(["tell", "unheard"], namespace)
    await link.join(namespace)
    assert await link.rest(namespace) == []
    assert hosted.main.told == hosted.chat.told == []
    assert hosted.main.left == hosted.chat.left == []


async def test_an_application_refuses_with_false_too(serve: Serve, closing: AsyncExitStack) -> None:
    class Closed(Host):
        async def on_connect(self, sid: str, environ: dict[str, Any], auth: Any) -> bool:  # type: ignore[override]
            return False

    hosted = await Hosted.start(serve)
    hosted.server.register_namespace(Closed("/closed"))
    link, _ = await joined(closing, hosted)
    await link.send("40/closed,")
    refusal = await link.message()
    assert refusal[:3] == (CONNECT_ERROR, "/closed", None)
    assert isinstance(refusal.data["message"], str)


@over_every_transport
async def test_one_connection_is_in_several_namespaces_at_once(
    serve: Serve, closing: AsyncExitStack, transport: str
) -> None:
    hosted = await Hosted.start(serve)
    link, main = await joined(closing, hosted, transport)
    chat = await link.join("/chat")
    gateways = await link.join(NAMESPACE, {"token": make_token("alice")})
    assert (await link.message()).data[0] == "connected"
    assert len({link.sid, main, chat, gateways}) == 4
    await link.send(
        '421["answer","main"]',
        '42/chat,1["answer","chat"]',
        f'42{NAMESPACE},1["heartbeat"]',
        '42["echo","main"]',
        '42/chat,["echo","chat"]',
    )
    answers = [await link.message() for _ in range(5)]
    assert answers[0] == (ACK, "/", 1, ["main"])
    assert answers[1] == (ACK, "/chat", 1, ["chat"])
    assert answers[2][:3] == (ACK, NAMESPACE, 1)
    assert answers[2].data[0]["event"] == "heartbeat-ack"
    assert answers[3] == (EVENT, "/", None, ["echoed", "main"])
    assert answers[4] == (EVENT, "/chat", None, ["echoed", "chat"])


@over_every_transport
async def test_all_that_opens_a_connection_may_be_sent_at_once(
    serve: Serve, closing: AsyncExitStack, transport: str
) -> None:
    hosted = await Hosted.start(serve)
    link = await open_link(closing, hosted.url, transport)
    await link.send("40", '42["echo",1]', "40/chat,", '42/chat,2["answer",2]', '423["answer",3]')
    heard = [await link.message() for _ in range(5)]
    assert [packet[:3] for packet in heard] == [
        (CONNECT, "/", None),
        (EVENT, "/", None),
        (CONNECT, "/chat", None),
        (ACK, "/chat", 2),
        (ACK, "/", 3),
    ]


@over_every_transport
async def test_what_the_application_says_to_one_who_has_joined_comes_after_the_welcome(
    serve: Serve, closing: AsyncExitStack, transport: str
) -> None:
    class Greeting(Host):
        async def on_connect(self, sid: str, environ: dict[str, Any], auth: Any) -> None:
            self.server.start_background_task(self.greet, sid)

        async def greet(self, sid: str) -> None:
            for n in range(5):
                await self.emit("greeting", n, to=sid)

    hosted = await Hosted.start(serve)
    hosted.server.register_namespace(Greeting("/greeting"))
    link = await open_link(closing, hosted.url, transport)
    await link.join("/greeting")
    assert [(await link.message()).data for _ in range(5)] == [["greeting", n] for n in range(5)]


@over_every_transport
async def test_what_the_application_says_while_it_lets_a_client_in_arrives_once(
    serve: Serve, closing: AsyncExitStack, transport: str
) -> None:
    class Greeting(Host):
        async def on_connect(self, sid: str, environ: dict[str, Any], auth: Any) -> None:
            await self.enter_room(sid, "everyone")
            await self.emit("to-you", auth, to=sid)
            await self.emit("to-room", auth, room="everyone")
            await self.save_session(sid, {"auth": auth})

        async def on_who(self, sid: str) -> Any:
            return (await self.get_session(sid))["auth"]

    hosted = await Hosted.start(serve)
    hosted.server.register_namespace(Greeting("/greeting"))
    link = await open_link(closing, hosted.url, transport)
    await link.send('40/greeting,{"n":1}', '42/greeting,1["who"]')
    heard = [await link.message() for _ in range(4)]
    assert sorted(packet.kind for packet in heard) == [CONNECT, EVENT, EVENT, ACK]
    assert [packet.data for packet in heard if packet.kind == EVENT] == [["to-you", {"n": 1}], ["to-room", {"n": 1}]]
    assert heard[-1] == (ACK, "/greeting", 1, [{"n": 1}])


@over_every_transport
@pytest.mark.parametrize("namespace", ["/", "/chat"])
async def test_nothing_is_handled_before_its_namespace_is_joined(
    serve: Serve, closing: AsyncExitStack, transport: str, namespace: str
) -> None:
    hosted = await Hosted.start(serve)
    link = await open_link(closing, hosted.url, transport)
    try:
        await link.tell(["tell", "too early"], namespace)
        await link.join(namespace)
        await link.rest(namespace)
    except (EndedError, AssertionError):
        await link.ended()
    assert hosted.main.told == hosted.chat.told == []


# Leaving a namespace


@over_every_transport
@pytest.mark.parametrize(("left", "kept"), [("/", "/chat"), ("/chat", "/")])
async def test_leaving_one_namespace_leaves_the_others(
    serve: Serve, closing: AsyncExitStack, transport: str, left: str, kept: str
) -> None:
    hosted = await Hosted.start(serve)
    of = {"/": hosted.main, "/chat": hosted.chat}
    link, sid = await joined(closing, hosted, transport, left)
    await link.join(kept)
    await link.send(*encode(DISCONNECT, None, left))
    assert await link.rest(kept) == []
    assert of[left].left == [(sid, "client disconnect")]
    assert of[kept].left == []
    await of[left].emit("unheard")
    assert await link.rest(kept) == []
    assert await link.join(left) != sid
    assert await link.rest(left) == []


@over_every_transport
@pytest.mark.parametrize(("left", "kept"), [("/", "/chat"), ("/chat", "/")])
async def test_the_server_ends_one_namespace_and_the_others_go_on(
    serve: Serve, closing: AsyncExitStack, transport: str, left: str, kept: str
) -> None:
    hosted = await Hosted.start(serve)
    of = {"/": hosted.main, "/chat": hosted.chat}
    link, sid = await joined(closing, hosted, transport, left)
    await link.join(kept)
    await of[left].emit("last words", to=sid)
    await of[left].disconnect(sid)
    assert await link.message() == (EVENT, left, None, ["last words"])
    assert await link.message() == (DISCONNECT, left, None, None)
    assert of[left].left == [(sid, "server disconnect")]
    await of[left].emit("unheard", to=sid)
    assert await link.rest(kept) == []
    assert of[kept].left == []


async def test_a_handler_may_end_its_own_client(serve: Serve, closing: AsyncExitStack) -> None:
    class Strict(Host):
        async def on_tell(self, sid: str, *args: Any) -> None:
            await super().on_tell(sid, *args)
            await self.disconnect(sid)

    hosted = await Hosted.start(serve)
    strict = Strict("/strict")
    hosted.server.register_namespace(strict)
    link, _ = await joined(closing, hosted)
    await link.join("/strict")
    await link.send('42/strict,["tell",1]', '42/strict,["tell",2]')
    assert await link.message() == (DISCONNECT, "/strict", None, None)
    assert await link.rest() == []
    assert strict.told == [1]


@over_every_transport
async def test_a_connection_that_ends_leaves_every_namespace_once(
    serve: Serve, closing: AsyncExitStack, transport: str
) -> None:
    hosted = await Hosted.start(serve)
    link, main = await joined(closing, hosted, transport)
    chat = await link.join("/chat")
    await link.send("41/chat,")
    chat_again = await link.join("/chat")
    await link.send("1")
    await hosted.main.misses(main)
    await hosted.chat.misses(chat_again)
    assert await hosted.chat.misses(chat) == "client disconnect"


# Events


PAYLOADS: dict[str, list[Any]] = {
    "nothing": [],
    "null": [None],
    "booleans": [True, False],
    "numbers": [0, -1, 1.5, 1e300, 2**53 - 1],
    "empty things": ["", [], {}, [[]], [{}], {"": ""}],
    "several": [1, "2", {"3": [True]}, [4, [5]]],
    "quotes": ['"', "'", "\\", '\\"', '["x"]', '{"_placeholder": true}'],
    "unicode": ["é", "\u20ac", "\U0001f600", "\u2028\u2029", "\ufeff", "\u202e", "e\u0301"],
    "control characters": ["\x00", "\x1e", "\n\r\t", "\x7f"],
    "what looks like packets": ['42["tell",1]', "/chat,", "1-", "b", "bAQID", "2probe", "\x1e1"],
    "keys of all kinds": [{"a b": 1, "é": 2, "0": 3, "__proto__": 4, '"': 5, "\x1e": 6}],
    "much": [["a" * 100] * 100, {str(n): n for n in range(500)}],
}


@pytest.mark.parametrize("name", PAYLOADS)
async def test_a_payload_comes_back_as_it_was_sent(serve: Serve, closing: AsyncExitStack, name: str) -> None:
    hosted = await Hosted.start(serve)
    payload = PAYLOADS[name]
    for transport in TRANSPORTS:
        link, _ = await joined(closing, hosted, transport, "/chat")
        await link.tell(["echo", *payload], "/chat")
        assert await link.message() == (EVENT, "/chat", None, ["echoed", *payload])
        await link.tell(["answer", *payload], "/chat", 0)
        assert await link.message() == (ACK, "/chat", 0, payload)
        await link.tell(["tell", *payload], "/chat")
        assert await link.rest("/chat") == []
        assert hosted.chat.told == [payload[0] if len(payload) == 1 else tuple(payload)]
        hosted.chat.told.clear()


async def test_a_payload_may_be_written_in_every_way_of_json(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link, _ = await joined(closing, hosted)
    await link.send(
        '42[ "tell" ,\t[ 1 , 2 ] ]',
        '42["tell","\\u00e9\\ud83d\\ude00\\/\\n"]',
        '42["tell",{"a":1,"a":2}]',
        '42["tell",-0,1E2,1.0]',
        '42["t\\u0065ll","escaped"]',
    )
    assert await link.rest() == []
    assert hosted.main.told == [[1, 2], "é\U0001f600/\n", {"a": 2}, (0, 100, 1), "escaped"]


NAMES = [
    'with "quotes"',
    "with \\ and '",
    "é\U0001f600",
    "\u2028",
    "a,b",
    ",",
    "/chat,",
    "/slash",
    "1",
    "12[",
    "1-",
    "[",
    "]",
    "{}",
    "-",
    " ",
    "",
    "a\x1eb",
    "message",
    "emit",
    "__class__",
    "on_connect",
    "*",
    "x" * 1000,
]


class Odd(Host):
    """A namespace that answers any event with its name, as an application does by `trigger_event`."""

    async def trigger_event(self, event: str, *args: Any) -> Any:
        if event in {"connect", "disconnect"}:
            return await super().trigger_event(event, *args)
        await self.emit(event, "named", to=args[0])
        return event


@over_every_transport
async def test_an_event_has_any_name(serve: Serve, closing: AsyncExitStack, transport: str) -> None:
    hosted = await Hosted.start(serve)
    hosted.server.register_namespace(Odd("/odd"))
    link = await open_link(closing, hosted.url, transport)
    await link.join("/odd")
    for name in NAMES:
        await link.tell([name, "argument"], "/odd", 5)
        assert await link.message() == (EVENT, "/odd", None, [name, "named"])
        assert await link.message() == (ACK, "/odd", 5, [name])


ODD_NAMESPACES = ["/a/b", "/1", "/1-2", "/12[", "/é", "/a b", '/"', "/x.y:z@w", "/-", "/42", "/" + "n" * 200]


@over_every_transport
async def test_a_namespace_has_any_name(serve: Serve, closing: AsyncExitStack, transport: str) -> None:
    hosted = await Hosted.start(serve)
    links = [await open_link(closing, hosted.url, transport) for _ in range(2)]
    for n, name in enumerate(ODD_NAMESPACES):
        host = Host(name)
        hosted.server.register_namespace(host)
        link = links[n % 2]  # each connection may try so often to join
        sid = await link.join(name, {"a,b": "/"})
        await link.tell(["echo", "1,2/3"], name)
        assert await link.message() == (EVENT, name, None, ["echoed", "1,2/3"])
        await link.tell(["answer", "[0]"], name, 12)
        assert await link.message() == (ACK, name, 12, ["[0]"])
        await link.tell(["tell", b"\x01"], name, 34)
        assert await link.message() == (ACK, name, 34, [])
        assert host.told == [b"\x01"]
        await link.send(f"41{name},")
        assert await host.misses(sid) == "client disconnect"


async def test_many_events_at_once_arrive_in_order(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    for transport in TRANSPORTS:
        link, _ = await joined(closing, hosted, transport)
        await link.send(*(f'42["tell",{n}]' for n in range(300)))
        assert await link.rest() == []
        assert hosted.main.told == list(range(300))
        hosted.main.told.clear()


@over_every_transport
async def test_many_events_of_the_server_arrive_in_order(serve: Serve, closing: AsyncExitStack, transport: str) -> None:
    hosted = await Hosted.start(serve)
    link, sid = await joined(closing, hosted, transport)
    await link.join("/chat")
    for n in range(100):
        await hosted.main.emit("said", n, to=sid)
        await hosted.chat.emit("said", (n, -n))
    assert await link.rest() == [
        packet
        for n in range(100)
        for packet in ((EVENT, "/", None, ["said", n]), (EVENT, "/chat", None, ["said", n, -n]))
    ]


async def test_an_event_that_no_handler_is_for_harms_nobody(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link, _ = await joined(closing, hosted)
    await link.send('42["no such event",1]')
    assert await link.rest() == []


async def test_handlers_are_found_beside_a_namespaces_own(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)

    async def sum_up(_sid: str, *numbers: int) -> int:
        return sum(numbers)

    async def anything(name: str, _sid: str, *args: Any) -> list[Any]:
        return [name, *args]

    hosted.server.on("sum", sum_up, namespace="/chat")
    link, _ = await joined(closing, hosted, namespace="/chat")
    await link.send('42/chat,1["sum",1,2,3]', '42/chat,2["answer",4]')
    assert await link.message() == (ACK, "/chat", 1, [6])
    assert await link.message() == (ACK, "/chat", 2, [4])
    hosted.server.on("*", anything, namespace="/chat")
    await link.send('42/chat,3["any name",1,2]', '42/chat,4["sum",1,2]')
    assert await link.message() == (ACK, "/chat", 3, [["any name", 1, 2]])
    assert await link.message() == (ACK, "/chat", 4, [3])


# Acknowledgements


ANSWERS: dict[str, tuple[list[Any], list[Any]]] = {
    "nothing": (["tell", 1], []),
    "no arguments": (["answer"], []),
    "one": (["one", "a"], ["a"]),
    "zero": (["one", 0], [0]),
    "false": (["one", False], [False]),
    "several": (["answer", 1, "2", {"3": [False]}], [1, "2", {"3": [False]}]),
    "a list, which is one": (["one", [1, 2]], [[1, 2]]),
    "an empty list, which is one": (["one", []], [[]]),
    "by a handler that is no coroutine": (["plain", {"a": 1}], [{"a": 1}]),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_event_with_an_id_is_acknowledged(serve: Serve, closing: AsyncExitStack, name: str) -> None:
    hosted = await Hosted.start(serve)
    asked, answered = ANSWERS[name]
    for transport in TRANSPORTS:
        link, _ = await joined(closing, hosted, transport)
        await link.join("/chat")
        for namespace in ("/", "/chat"):
            for packet_id in (0, 1, 10, 456, 2**53 - 1):
                await link.tell(asked, namespace, packet_id)
                assert await link.message() == (ACK, namespace, packet_id, answered)


async def test_an_event_without_an_id_is_not_acknowledged(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link, _ = await joined(closing, hosted)
    for asked, _ in ANSWERS.values():
        await link.tell(asked)
    assert await link.rest() == []


@over_every_transport
async def test_requests_at_once_are_acknowledged_in_order(
    serve: Serve, closing: AsyncExitStack, transport: str
) -> None:
    hosted = await Hosted.start(serve)
    link, _ = await joined(closing, hosted, transport)
    await link.join("/chat")
    turns = [5, 0, 3, 1, 0, 2, 0, 0, 7, 0]
    await link.send(
        *(packet for n in range(10) for packet in event(["turns", turns[n]], "/" if n % 3 else "/chat", n)),
    )
    for n in range(10):
        assert await link.message() == (ACK, "/" if n % 3 else "/chat", n, [turns[n]])


@over_every_transport
async def test_what_a_handler_says_comes_before_what_it_answers(
    serve: Serve, closing: AsyncExitStack, transport: str
) -> None:
    hosted = await Hosted.start(serve)
    link, _ = await joined(closing, hosted, transport)
    await link.send('421["echo",1]', '422["echo",2]')
    assert [packet[0::2] for packet in [await link.message() for _ in range(4)]] == [
        (EVENT, None),
        (ACK, 1),
        (EVENT, None),
        (ACK, 2),
    ]


@pytest.mark.parametrize("namespace", ["/", "/chat"])
@pytest.mark.parametrize("answer", [[], [None], ["a"], [1, "b", {"c": [True]}], [[]]])
async def test_the_server_asks_for_an_acknowledgement(
    serve: Serve, closing: AsyncExitStack, namespace: str, answer: list[Any]
) -> None:
    hosted = await Hosted.start(serve)
    host = hosted.main if namespace == "/" else hosted.chat
    answers: list[Any] = []
    for transport in TRANSPORTS:
        link, sid = await joined(closing, hosted, transport, namespace)
        await host.emit("question", ("a", 1), to=sid, callback=lambda *args: answers.append(list(args)))
        question = await link.message()
        assert (question.kind, question.namespace, question.data) == (EVENT, namespace, ["question", "a", 1])
        assert question.id is not None
        await link.send(*encode(ACK, answer, namespace, question.id))
        assert await link.rest(namespace) == []
        assert answers == [answer]
        await link.send(*encode(ACK, answer, namespace, question.id))
        assert await link.rest(namespace) == []
        assert answers == [answer], "an acknowledgement counts once"
        answers.clear()


async def test_acknowledgements_find_their_questions_in_any_order(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link, main = await joined(closing, hosted)
    chat = await link.join("/chat")
    answers: list[Any] = []

    async def later(*args: Any) -> None:
        await asyncio.sleep(0)
        answers.append(args)

    for n in range(3):
        await hosted.main.emit("question", n, to=main, callback=later)
        await hosted.chat.emit("question", n, to=chat, callback=later)
    questions = [await link.message() for _ in range(6)]
    assert len({question[1:3] for question in questions}) == 6
    await link.send(
        *(
            packet
            for namespace, packet_id, data in [question[1:] for question in reversed(questions)]
            for packet in encode(ACK, [namespace, data[1]], namespace, packet_id)
        )
    )
    assert await link.rest() == []
    assert answers == [("/chat", 2), ("/", 2), ("/chat", 1), ("/", 1), ("/chat", 0), ("/", 0)]


async def test_nobody_answers_for_another(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    asked, sid = await joined(closing, hosted)
    await asked.join("/chat")
    other, _ = await joined(closing, hosted)
    answers: list[Any] = []
    await hosted.main.emit("question", to=sid, callback=lambda *args: answers.append(args))
    question = await asked.message()
    assert question.id is not None
    await other.send(*encode(ACK, ["by another"], "/", question.id))
    assert await other.rest() == []
    await asked.send(*encode(ACK, ["in another namespace"], "/chat", question.id))
    await asked.send(*encode(ACK, ["to another question"], "/", question.id + 1))
    await asked.send(*encode(ACK, ["mine"], "/", question.id))
    assert await asked.rest() == []
    assert answers == [("mine",)]


# Binary


BINARY: dict[str, list[Any]] = {
    "one": [b"\x01\x02\x03\x04"],
    "every byte": [bytes(range(256))],
    "empty": [b""],
    "two": [b"\x01", b"\x02\x03"],
    "among others": ["a", b"\x01", None, b"\x02", {"b": 1}],
    "nested": [{"a": [b"\x01", {"b": b"\x02", "c": [[b"\x03"]]}], "d": 1}, [b"\x04"]],
    "ten": [bytes([n]) for n in range(10)],
    "the same twice": [b"\x01", b"\x01"],
    "what looks like a packet": [b'42["tell",1]', b"2probe", b"b", b"\x1e"],
    "large": [bytes(30_000), b"\xff" * 10_000],
}


@pytest.mark.parametrize("name", BINARY)
async def test_an_event_brings_bytes_where_they_belong(serve: Serve, closing: AsyncExitStack, name: str) -> None:
    hosted = await Hosted.start(serve)
    payload = BINARY[name]
    for transport in TRANSPORTS:
        link, _ = await joined(closing, hosted, transport)
        await link.join("/chat")
        for namespace, host in (("/", hosted.main), ("/chat", hosted.chat)):
            await link.tell(["tell", *payload], namespace)
            await link.tell(["tell", *payload], namespace, 789)
            assert await link.message() == (ACK, namespace, 789, [])
            assert host.told == [payload[0] if len(payload) == 1 else tuple(payload)] * 2
            host.told.clear()


@pytest.mark.parametrize(
    "transport",
    [
        "polling",
        "websocket",
        "upgraded",
    ],
)
async def test_the_server_sends_bytes_where_they_belong(serve: Serve, closing: AsyncExitStack, transport: str) -> None:
    hosted = await Hosted.start(serve)
    link, _ = await joined(closing, hosted, transport)
    sid = await link.join("/chat")
    for payload in BINARY.values():
        await hosted.chat.emit("bytes", tuple(payload), to=sid)
        assert await link.message() == (BINARY_EVENT, "/chat", None, ["bytes", *payload])
        for namespace in ("/", "/chat"):
            await link.tell(["answer", *payload], namespace, 15)
            assert await link.message() == (BINARY_ACK, namespace, 15, payload)


@pytest.mark.parametrize("name", BINARY)
async def test_a_client_acknowledges_with_bytes(serve: Serve, closing: AsyncExitStack, name: str) -> None:
    hosted = await Hosted.start(serve)
    answers: list[Any] = []
    for transport in TRANSPORTS:
        link, sid = await joined(closing, hosted, transport)
        await hosted.main.emit("question", to=sid, callback=lambda *args: answers.append(list(args)))
        question = await link.message()
        await link.send(*encode(BINARY_ACK, BINARY[name], "/", question.id))
        assert await link.rest() == []
        assert answers.pop() == BINARY[name]
        assert answers == []


async def test_the_server_asks_with_bytes(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link, sid = await joined(closing, hosted)
    answers: list[Any] = []
    await hosted.main.emit("question", b"\x01", to=sid, callback=answers.append)
    question = await link.message()
    assert (question.kind, question.data) == (BINARY_EVENT, ["question", b"\x01"])
    await link.send(*encode(ACK, ["seen"], "/", question.id))
    assert await link.rest() == []
    assert answers == ["seen"]


async def test_an_attachment_is_placed_by_its_number(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link, _ = await joined(closing, hosted)
    await link.send(
        '452-["tell",{"_placeholder":true,"num":1},{"num":0,"_placeholder":true}]',
        b"zero",
        b"one",
        '42["tell",{"_placeholder":true,"num":0}]',  # no attachments, so no place for one
    )
    assert await link.rest() == []
    assert hosted.main.told == [(b"one", b"zero"), {"_placeholder": True, "num": 0}]


async def test_a_heartbeat_may_come_between_an_event_and_its_attachment(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link, _ = await joined(closing, hosted)
    await link.send('451-["tell",{"_placeholder":true,"num":0}]', "3", b"\x01")
    assert await link.rest() == []
    assert hosted.main.told == [b"\x01"]


async def test_nothing_comes_between_an_event_of_the_server_and_its_attachments(
    serve: Serve, closing: AsyncExitStack
) -> None:
    hosted = await Hosted.start(serve)
    link, _ = await joined(closing, hosted)
    await link.join("/chat")
    await link.send(*(packet for n in range(10) for packet in event(["answer", [bytes([n])] * 3], "/chat", n)))
    await asyncio.gather(
        *(
            host.emit("said", data)
            for n in range(20)
            for host, data in ((hosted.main, {"n": n, "bytes": [bytes([n])] * 5}), (hosted.chat, n))
        ),
    )
    heard = [*await link.rest(), *await link.rest("/chat")]
    assert sorted(packet.data[1]["n"] for packet in heard if packet.kind == BINARY_EVENT) == list(range(20))
    assert [packet.data[1]["bytes"] for packet in heard if packet.kind == BINARY_EVENT] == [
        [bytes([packet.data[1]["n"]])] * 5 for packet in heard if packet.kind == BINARY_EVENT
    ]
    assert sorted(packet.data[1] for packet in heard if packet.kind == EVENT) == list(range(20))
    assert [packet.data for packet in heard if packet.kind == BINARY_ACK] == [[[bytes([n])] * 3] for n in range(10)]


async def test_bytes_reach_everyone_whatever_each_is_connected_by(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    links = [(await joined(closing, hosted, transport))[0] for transport in [*TRANSPORTS, *reversed(TRANSPORTS)]]
    await hosted.main.emit("bytes", {"a": b"\x01\x02"})
    for link in links:
        assert await link.message() == (BINARY_EVENT, "/", None, ["bytes", {"a": b"\x01\x02"}])


# What is no packet


MALFORMED: dict[str, list[str | bytes]] = {
    "no packet type": ["4"],
    "a packet type that is a letter": ["4abc"],
    "a packet type that is a sign": ["4-"],
    "packet type 7": ["47[]"],
    "packet type 9": ["49"],
    "an event without a payload": ["42"],
    "an event without a payload, in a namespace": ["42/,"],
    "an event of an object": ["42{}"],
    "an event of nothing": ["42[]"],
    "an event of null": ["42null"],
    "an event of a number": ["425"],
    "an event whose name is a list": ['42[["tell"]]'],
    "an id that is no number": ['42abc["tell",1]'],
    "an id below zero": ['42-1["tell",1]'],
    "an id with a fraction": ['421.5["tell",1]'],
    "json cut off": ['42["tell",1'],
    "json with more behind": ['42["tell",1]x'],
    "json in other quotes": ["42['tell',1]"],
    "json with a comma too many": ['42["tell",1,]'],
    "not a number": ['42["tell",NaN]'],
    "a connect error from a client": ['44{"message":"x"}'],
    "bytes that nobody announced": [b"\x01"],
    "bytes that read like an event": [b'2["tell",1]'],
    "an attachment count of nothing": ["45"],
    "an attachment count that is no number": ['45x-["tell",1]'],
    "text where an attachment is due": ['451-["tell",{"_placeholder":true,"num":0}]', '42["tell",1]'],
    "a place for an attachment that is not there": ['451-["tell",{"_placeholder":true,"num":5}]', b"\x01"],
    "a place that is no number": ['451-["tell",{"_placeholder":true,"num":"0"}]', b"\x01"],
    "a binary event of an object": ['451-{"tell":{"_placeholder":true,"num":0}}', b"\x01"],
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_packet_closes_this_connection_only(serve: Serve, closing: AsyncExitStack, name: str) -> None:
    hosted = await Hosted.start(serve)
    other, _ = await joined(closing, hosted)
    for transport in TRANSPORTS:
        link, main = await joined(closing, hosted, transport)
        chat = await link.join("/chat")
        await link.send(*MALFORMED[name])
        await link.ended()
        await hosted.main.misses(main)
        await hosted.chat.misses(chat)
        assert hosted.main.told == []
        assert await other.rest() == []


async def test_what_comes_behind_what_is_no_packet_is_not_handled(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    for transport in TRANSPORTS:
        link, sid = await joined(closing, hosted, transport)
        await link.send('42["tell",1]', "42{}", '42["tell",2]')
        await link.ended()
        await hosted.main.misses(sid)
    assert hosted.main.told == [1, 1, 1]


# What an application asks of its server


async def three(closing: AsyncExitStack, hosted: Hosted, namespace: str = "/chat") -> list[tuple[Link, str]]:
    """Three clients of a namespace, each over another transport."""
    return [await joined(closing, hosted, transport, namespace) for transport in TRANSPORTS]


async def heard(clients: list[tuple[Link, str]], namespace: str = "/chat") -> list[list[Any]]:
    """What each client has heard, without the name."""
    return [[packet.data[1] for packet in await link.rest(namespace)] for link, _ in clients]


async def test_an_event_to_everyone_reaches_all_of_its_namespace(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    clients = await three(closing, hosted)
    elsewhere, _ = await joined(closing, hosted)
    await hosted.chat.emit("said", 1)
    await hosted.server.emit("said", 2, namespace="/chat")
    assert await heard(clients) == [[1, 2]] * 3
    assert await elsewhere.rest() == []


async def test_a_room_is_those_who_entered_it(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    clients = await three(closing, hosted)
    (_, a), (_, b), (_, c) = clients
    await hosted.chat.emit("said", 0, room="r")
    await hosted.chat.enter_room(a, "r")
    await hosted.chat.emit("said", 1, room="r")
    await hosted.chat.enter_room(b, "r")
    await hosted.chat.enter_room(b, "r")
    await hosted.chat.emit("said", 2, to="r")
    assert set(hosted.chat.rooms(b)) == {b, "r"}
    await hosted.chat.leave_room(a, "r")
    await hosted.chat.leave_room(c, "r")
    await hosted.chat.emit("said", 3, room="r")
    await hosted.main.emit("said", 4, room="r")
    await hosted.chat.emit("said", 5, room=c)
    assert await heard(clients) == [[1, 2], [2, 3], [5]]


async def test_a_client_has_a_room_of_its_own(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    clients = await three(closing, hosted)
    (_, a), (_, b), (_, c) = clients
    assert [set(hosted.chat.rooms(sid)) for sid in (a, b)] == [{a}, {b}]
    await hosted.chat.emit("said", 1, room=[a, c])
    with pytest.raises(ValueError, match="sid room"):
        await hosted.chat.enter_room(b, a)
    with pytest.raises(ValueError, match="sid room"):
        await hosted.chat.close_room(a)
    await hosted.chat.enter_room(a, a)  # where it is
    await hosted.chat.leave_room(b, a)  # where it is not
    await hosted.chat.emit("said", 2, room=a)
    await hosted.chat.leave_room(a, a)
    assert set(hosted.chat.rooms(a)) == set()
    await hosted.chat.emit("said", 3, room=a)
    await hosted.chat.enter_room(a, a)
    await hosted.chat.emit("said", 4, room=a)
    await hosted.chat.emit("said", 5, skip_sid=b)
    assert await heard(clients) == [[1, 2, 4, 5], [], [1, 5]]


async def test_a_room_that_is_closed_is_nobodys(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    clients = await three(closing, hosted)
    for _, sid in clients:
        await hosted.chat.enter_room(sid, "r")
        await hosted.chat.enter_room(sid, "s")
    await hosted.chat.close_room("r")
    await hosted.chat.emit("said", 1, room="r")
    await hosted.chat.emit("said", 2, room="s")
    assert await heard(clients) == [[2]] * 3
    await hosted.chat.enter_room(clients[0][1], "r")
    await hosted.chat.emit("said", 3, room="r")
    assert await heard(clients) == [[3], [], []]


async def test_an_event_to_several_rooms_comes_once(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    clients = await three(closing, hosted)
    (_, a), (_, b), (_, c) = clients
    for sid, rooms in ((a, "rs"), (b, "s"), (c, "t")):
        for room in rooms:
            await hosted.chat.enter_room(sid, room)
    await hosted.chat.emit("said", 1, room=["r", "s"])
    await hosted.chat.emit("said", 2, room=["nobody's", "t", c])
    await hosted.chat.emit("said", 3, to=[a, b, c, "r", "s", "t"])
    assert await heard(clients) == [[1, 3], [1, 3], [2, 3]]


async def test_an_event_skips_whom_it_shall_skip(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    clients = await three(closing, hosted)
    (_, a), (_, b), (_, c) = clients
    for sid in (a, b):
        await hosted.chat.enter_room(sid, "r")
    await hosted.chat.emit("said", 1, skip_sid=a)
    await hosted.chat.emit("said", 2, skip_sid=[a, c])
    await hosted.chat.emit("said", 3, room="r", skip_sid=b)
    await hosted.chat.emit("said", 4, room="r", skip_sid=[a, b])
    assert await heard(clients) == [[3], [1, 2], [1]]


@over_every_transport
async def test_who_leaves_a_namespace_leaves_its_rooms(serve: Serve, closing: AsyncExitStack, transport: str) -> None:
    hosted = await Hosted.start(serve)
    link, main = await joined(closing, hosted, transport)
    sid = await link.join("/chat")
    await hosted.main.enter_room(main, "r")
    await hosted.chat.enter_room(sid, "r")
    await link.send("41/chat,")
    await link.join("/chat")
    await hosted.main.emit("said", 1, room="r")
    await hosted.chat.emit("said", 2, room="r")
    await hosted.chat.emit("said", 3, to=sid)
    assert [packet.data for packet in await link.rest()] == [["said", 1]]


@over_every_transport
async def test_a_session_is_kept_for_each_namespace(serve: Serve, closing: AsyncExitStack, transport: str) -> None:
    hosted = await Hosted.start(serve)
    link, main = await joined(closing, hosted, transport)
    chat = await link.join("/chat")
    _, other = await joined(closing, hosted, transport, "/chat")
    await hosted.main.save_session(main, {"of": "main"})
    async with hosted.chat.session(chat) as session:
        session["of"] = "chat"
    assert await hosted.main.get_session(main) == {"of": "main"}
    assert await hosted.chat.get_session(chat) == {"of": "chat"}
    assert await hosted.chat.get_session(other) == {}
    await link.send("41/chat,")
    assert await link.rest() == []
    assert await hosted.main.get_session(main) == {"of": "main"}


@over_every_transport
async def test_the_application_knows_how_a_client_came(serve: Serve, closing: AsyncExitStack, transport: str) -> None:
    hosted = await Hosted.start(serve)
    _, sid = await joined(closing, hosted, transport, "/chat")
    assert hosted.server.transport(sid, "/chat") == ("polling" if transport == "polling" else "websocket")
    assert (
        f"transport={'websocket' if transport == 'websocket' else 'polling'}"
        in (hosted.server.get_environ(sid, "/chat")["QUERY_STRING"])
    )


async def test_the_gateway_and_the_application_do_not_hear_each_other(serve: Serve, closing: AsyncExitStack) -> None:
    hosted = await Hosted.start(serve)
    link = await WebSocket.open(closing, hosted.url)
    await link.join(NAMESPACE, {"token": make_token("alice")})
    assert (await link.message()).data[0] == "connected"
    await link.join()
    await hosted.running.gateway.notify("alice", "notification", {"n": 1})
    assert await link.message() == (EVENT, NAMESPACE, None, ["notification", {"n": 1}])
    await hosted.main.emit("said", 1)
    assert await link.message() == (EVENT, "/", None, ["said", 1])
    await link.send(f"41{NAMESPACE},")
    assert await link.rest() == []
    await eventually(lambda: not hosted.running.gateway.presence.status("alice").online)
    assert await link.rest() == []
