"""Endpoints, signatures and answers; and a courier on a clock that jumps, with an endpoint that does as it is told."""

from __future__ import annotations

import asyncio
import base64
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime

import msgspec
import pytest
from conftest import eventually
from loops import Loop
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from structlog.testing import capture_logs

from gateway.errors import StoreUnavailableError
from gateway.nodes.duty import Duty, LocalLeases
from gateway.presence.model import Profile, Status, Transition, UserStatus
from gateway.runtime.tasks import end
from gateway.webhooks import courier
from gateway.webhooks.courier import RESCAN, Counts, Courier, Policy
from gateway.webhooks.endpoint import Endpoint, headers, keys_of, types_of
from gateway.webhooks.event import Message, message, message_of
from gateway.webhooks.outbox import Bounds, Taken
from gateway.webhooks.outbox_memory import MemoryOutbox
from gateway.webhooks.post import LONGEST_WAIT, TAKEN, Answer, answer_of
from gateway.webhooks.sender import Webhooks

T = 1_700_000_000_000
KEY = base64.b64encode(b"a key of thirty-two bytes, or so!").decode()

# Endpoints and signatures


@pytest.mark.parametrize("secret", [f"whsec_{KEY}", f"whsec_{KEY}".rstrip("=")])
def test_a_secret_of_standard_webhooks_is_verified_by_its_package(secret: str) -> None:
    endpoint = Endpoint("default", "http://x", keys_of(secret))
    body = '{"id":"msg_1","data":"ä"}'.encode()
    signed = headers(endpoint, "msg_1", body, int(time.time()))
    assert Webhook(secret).verify(body, signed) == {"id": "msg_1", "data": "ä"}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body + b" ", signed)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, signed | {"webhook-id": "msg_2"})


def test_any_other_secret_is_taken_as_it_is() -> None:
    body = b"{}"
    signed = headers(Endpoint("default", "http://x", keys_of("plain secret?"[:5])), "msg_1", body, int(time.time()))
    Webhook(b"plain").verify(body, signed)


def test_while_a_secret_is_replaced_both_verify() -> None:
    endpoint, body = Endpoint("default", "http://x", keys_of(f"whsec_{KEY} another")), b"{}"
    signed = headers(endpoint, "msg_1", body, int(time.time()))
    for secret in (f"whsec_{KEY}", b"another"):
        Webhook(secret).verify(body, signed)
    with pytest.raises(WebhookVerificationError):
        Webhook(b"a third").verify(body, signed)


@pytest.mark.parametrize("secret", ["", "  ", "whsec_", "whsec_not-base64!", "whsec_????", "good whsec_"])
def test_what_is_no_secret_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="takes"):
        keys_of(secret)


def test_an_endpoint_does_not_show_its_secrets() -> None:
    assert repr(Endpoint("crm", "https://user:hush@x", keys_of("hush"))) == "Endpoint('crm')"


def test_types_are_named_alone_or_many_at_once() -> None:
    users = {"user.online", "user.offline", "user.status_changed"}
    channels, members = {"channel.occupied", "channel.vacated"}, {"member.added", "member.removed"}
    assert types_of(["*"]) == types_of(["user.*", "channel.*", "member.*"]) == users | channels | members
    assert types_of(["user.*"]) == users
    assert types_of(["channel.*", "member.added"]) == channels | {"member.added"}
    assert types_of(["user.offline", "user.online"]) == {"user.online", "user.offline"}
    for named in ("client.event", "channel.cache_miss", "channel.subscription_count"):
        assert types_of([named]) == {named}, "and by nothing else"
        assert types_of(["*", named]) == users | channels | members | {named}
    for wrong in ("user", "user.gone", "channels.*", "client.*", "", "**"):
        with pytest.raises(ValueError, match=r"events takes user\.online, "):
            types_of([wrong])


# Events


def change(was: Status, now: Status, *, version: int = 1, user: str = "alice", text: str | None = None) -> Transition:
    status = UserStatus(
        tenant="acme",
        user_id=user,
        status=now,
        status_text=text,
        active_at=T,
        online_since=T if now is not Status.OFFLINE else None,
        version=version,
        profile=Profile(name="Alice", role="admin"),
    )
    return Transition(position=7, at=T, was=was, now=status, reason="connected")


def test_data_is_what_the_events_say_with_the_tenant() -> None:
    online, offline = change(Status.OFFLINE, Status.ONLINE), change(Status.ONLINE, Status.OFFLINE, version=2)
    changed = change(Status.ONLINE, Status.BUSY, version=3, text="in a call")
    bodies = [msgspec.json.decode(each.body) for each in map(message_of, (online, offline, changed)) if each]
    stamp = "2023-11-14T22:13:20.000Z"
    assert [body["type"] for body in bodies] == ["user.online", "user.offline", "user.status_changed"]
    assert [body["timestamp"] for body in bodies] == [stamp] * 3
    assert bodies[0]["data"] == {
        "userId": "alice",
        "online": True,
        "status": "online",
        "timestamp": stamp,
        "version": 1,
        "name": "Alice",
        "tenant": "acme",
    }
    assert bodies[2]["data"] == {
        "userId": "alice",
        "online": True,
        "status": "busy",
        "statusText": "in a call",
        "lastActive": stamp,
        "connectedAt": stamp,
        "version": 3,
        "timestamp": stamp,
        "tenant": "acme",
    }


def test_what_was_given_back_as_it_was_is_no_event() -> None:
    assert message_of(change(Status.OFFLINE, Status.OFFLINE)) is None


# Answers


@pytest.mark.parametrize(
    ("status", "retry_after", "answer"),
    [
        (200, None, TAKEN),
        (204, "5", TAKEN),
        (301, None, Answer("it answered 301, and redirects are not followed")),
        (410, None, Answer("it answered 410", gone=True)),
        (429, "7", Answer("it answered 429", 7.0, busy=True)),
        (503, format_datetime(datetime.fromtimestamp(T / 1000 + 90, UTC)), Answer("it answered 503", 90.0, busy=True)),
        (503, None, Answer("it answered 503")),
        (500, "7", Answer("it answered 500", 7.0)),
        (429, "soon", Answer("it answered 429")),
        (429, "9" * 5000, Answer("it answered 429", LONGEST_WAIT, busy=True)),
        (429, "Mon, 01 Jan 1990 00:00:00 GMT", Answer("it answered 429", 0.0, busy=True)),
        (429, "Mon, 01 Jan 99999 00:00:00 GMT", Answer("it answered 429")),
    ],
)
def test_an_answer_says_whether_and_when_to_send_again(status: int, retry_after: str | None, answer: Answer) -> None:
    assert answer_of(status, retry_after, T) == answer


# The courier


class Site:
    """A queue, a courier, and an endpoint that answers as it is told to."""

    def __init__(self, *, bounds: Bounds, policy: Policy) -> None:
        self.outbox = MemoryOutbox(bounds)
        self.endpoint = Endpoint("crm", "http://x", (b"key",), frozenset({"user.online"}))
        self.loop = Loop()
        self.counts = Counts()
        self.seen: list[tuple[str, int]] = []
        """Whose event, and its number among theirs."""
        self.ids: list[str] = []
        self.answers: Callable[[str, int], Answer] = lambda _user, _number: TAKEN
        self.held: dict[str, asyncio.Event] = {}
        """Whose requests hang until it is set."""
        self.courier = Courier(
            "crm", self.outbox, self.post, policy, lambda: T, self.counts, self.loop, jitter=lambda: 1.0
        )

    async def post(self, message: Message, _now: int) -> Answer:
        user, number = message.key, msgspec.json.decode(message.body)["data"]
        self.seen.append((user, number))
        self.ids.append(message.id)
        if user in self.held:
            await self.held[user].wait()
        return self.answers(user, number)

    def commit(self, *events: tuple[str, int]) -> None:
        for user, number in events:
            self.outbox.keep(message("user.online", user, T, number, f"{user} {number}"))  # type: ignore[arg-type]

    async def look(self) -> None:
        """What a sender does all the time."""
        await self.outbox.register(["crm"])
        while (await self.outbox.take([self.endpoint], T)).moved:
            pass
        state = (await self.outbox.states())["crm"]
        await self.courier.look(state.waiting, state.stopped)
        for _ in range(50):
            await asyncio.sleep(0)

    async def after(self, seconds: float) -> None:
        self.loop.run_until(self.loop.now + seconds)
        await self.look()

    async def waiting(self) -> int:
        return (await self.outbox.states())["crm"].waiting


@asynccontextmanager
async def site(*, bounds: Bounds | None = None, **policy: float) -> AsyncIterator[Site]:
    made = Site(bounds=bounds or Bounds(), policy=msgspec.convert(policy, Policy))
    running = asyncio.create_task(made.courier.run())
    try:
        yield made
    finally:
        await end([running])


def of(seen: Sequence[tuple[str, int]], user: str) -> list[int]:
    return [number for whose, number in seen if whose == user]


FAILED = Answer("it answered 500")


async def test_what_is_taken_leaves_the_queue() -> None:
    async with site() as it:
        it.commit(("a", 1), ("b", 1), ("a", 2))
        await it.look()
        assert (of(it.seen, "a"), of(it.seen, "b")) == ([1, 2], [1])
        assert (await it.waiting(), it.courier.waiting, it.counts.sent) == (0, 0, 3)


async def test_a_failing_event_holds_back_its_user_s_later_ones_and_nobody_else_s() -> None:
    async with site(concurrency=1) as it:
        it.answers = lambda user, number: FAILED if (user, number) == ("a", 1) else TAKEN
        it.commit(("a", 1), ("a", 2), ("b", 1), ("b", 2))
        await it.look()
        assert (of(it.seen, "a"), of(it.seen, "b")) == ([1], [1, 2])
        await it.after(1)
        assert of(it.seen, "a") == [1, 1]
        it.answers = lambda _user, _number: TAKEN
        await it.after(2)
        assert of(it.seen, "a") == [1, 1, 1, 2]
        assert len({it.ids[place] for place, each in enumerate(it.seen) if each == ("a", 1)}) == 1
        assert (it.counts.sent, it.counts.failed, it.counts.retried, await it.waiting()) == (4, 2, 2, 0)


async def test_the_log_says_when_an_endpoint_begins_to_fail_and_when_that_is_over() -> None:
    async with site(concurrency=1) as it:
        it.answers = lambda _user, _number: FAILED
        it.commit(("a", 1), ("b", 1))
        with capture_logs() as logs:
            await it.look()
            await it.after(1)
        assert [(each["log_level"], each.get("reason")) for each in logs] == [("warning", "it answered 500")]
        it.answers = lambda _user, _number: TAKEN
        with capture_logs() as logs:
            await it.after(10)
        assert [each["event"] for each in logs] == ["a webhook endpoint takes what it is sent again"]


async def test_attempts_come_later_and_later() -> None:
    async with site() as it:
        it.answers = lambda _user, _number: FAILED
        it.commit(("a", 1))
        await it.look()
        waits = []
        for _ in range(9):
            [due] = it.loop.waiting()
            waits.append(due - it.loop.now)
            await it.after(due - it.loop.now)
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_who_was_tried_for_long_enough_is_a_dead_letter_and_those_behind_come() -> None:
    async with site(retry_for=300) as it:
        it.answers = lambda _user, number: FAILED if number == 1 else TAKEN
        it.commit(("a", 1), ("a", 2))
        await it.look()
        began = it.loop.now
        while not await it.outbox.letters("crm"):
            [due] = it.loop.waiting()
            await it.after(due - it.loop.now)
        assert it.loop.now - began >= 300
        [letter] = await it.outbox.letters("crm")
        assert (letter.reason, letter.attempts, letter.message.key) == (
            "it answered 500",
            len(of(it.seen, "a")) - 1,
            "a",
        )
        assert of(it.seen, "a")[-1] == 2
        assert (it.counts.dead, await it.waiting()) == (1, 0)
        it.answers = lambda _user, _number: TAKEN
        await it.outbox.replay("crm", None)
        await it.look()
        assert of(it.seen, "a")[-1] == 1
        assert it.ids[-1] == letter.message.id


async def test_an_endpoint_that_asks_for_patience_is_given_it_and_no_event_loses_by_it() -> None:
    async with site(concurrency=2, retry_for=300) as it:
        it.answers = lambda _user, _number: Answer("it answered 429", 400.0, busy=True)
        it.commit(("a", 1))
        await it.look()
        it.commit(("b", 1))
        await it.after(399)
        assert it.seen == [("a", 1)]
        it.answers = lambda _user, _number: FAILED
        await it.after(1)
        await it.after(0)
        assert sorted(it.seen) == [("a", 1), ("a", 1), ("b", 1)]
        assert await it.outbox.letters("crm") == [], "it was not asked for 300 seconds"


async def test_retry_after_of_one_event_is_for_that_event() -> None:
    async with site() as it:
        it.answers = lambda user, _number: Answer("it answered 500", 100.0) if user == "a" else TAKEN
        it.commit(("a", 1))
        await it.look()
        it.commit(("b", 1))
        await it.after(99)
        assert it.seen == [("a", 1), ("b", 1)]
        await it.after(1)
        assert it.seen[2:] == [("a", 1)]


async def test_an_endpoint_that_is_gone_is_sent_nothing_until_it_is_resumed() -> None:
    async with site(concurrency=1) as it:
        it.answers = lambda _user, _number: Answer("it answered 410", gone=True)
        it.commit(("a", 1), ("b", 1))
        await it.look()
        assert (it.seen, it.courier.stopped) == ([("a", 1)], "it answered 410")
        assert (await it.outbox.states())["crm"].stopped == "it answered 410"
        await it.after(10_000)
        assert it.seen == [("a", 1)]
        it.answers = lambda _user, _number: TAKEN
        await it.outbox.resume("crm")
        await it.look()
        assert sorted(it.seen[1:]) == [("a", 1), ("b", 1)]
        assert (it.courier.stopped, await it.waiting(), await it.outbox.letters("crm")) == (None, 0, [])


async def test_what_was_read_before_an_endpoint_stopped_does_not_resume_it() -> None:
    async with site() as it:
        it.answers = lambda _user, _number: Answer("it answered 410", gone=True)
        it.commit(("a", 1))
        await it.look()
        await it.courier.look(1, None)
        assert it.courier.stopped == "it answered 410"


async def test_so_many_requests_at_once_and_no_more_and_one_for_each_user() -> None:
    async with site(concurrency=3) as it:
        users = ["a", "b", "c", "d"]
        it.held = {user: asyncio.Event() for user in users}
        it.commit(*((user, number) for number in (1, 2) for user in users))
        await it.look()
        assert it.seen == [("a", 1), ("b", 1), ("c", 1)]
        it.held["b"].set()
        await it.look()
        assert it.seen[3:] == [("d", 1)]
        for event in it.held.values():
            event.set()
        await it.look()
        assert all(of(it.seen, user) == [1, 2] for user in users)


async def test_what_is_queued_no_more_is_let_go_of() -> None:
    async with site(bounds=Bounds(queue=2), concurrency=1) as it:
        it.held = {"a": asyncio.Event()}
        it.commit(("a", 1), ("b", 1))
        await it.look()
        for event in (("a", 2), ("c", 1), ("b", 2), ("d", 1)):
            it.commit(event)
            await it.look()
        assert [letter.message.key for letter in await it.outbox.letters("crm")] == ["a", "b", "a", "c"]
        await it.after(RESCAN)
        assert it.courier.waiting == 3, "what is in flight, and the two in the queue"
        it.held["a"].set()
        await it.look()
        assert it.seen == [("a", 1), ("b", 2), ("d", 1)]
        assert (it.courier.waiting, await it.waiting()) == (0, 0)


async def test_what_a_full_queue_let_go_of_waits_no_more_from_the_next_look_on() -> None:
    async with site(bounds=Bounds(queue=3), concurrency=1) as it:
        it.held = {"a": asyncio.Event()}
        it.commit(("a", 1), ("b", 1), ("a", 2))
        await it.look()
        assert it.courier.waiting == 3
        it.commit(("c", 1), ("b", 2), ("d", 1))
        await it.look()
        assert [letter.message.key for letter in await it.outbox.letters("crm")] == ["a", "b", "a"]
        assert it.courier.waiting == 4, "what is in flight, and the three in the queue"
        it.held["a"].set()
        await it.look()
        assert it.seen[0] == ("a", 1)
        assert sorted(it.seen[1:]) == [("b", 2), ("c", 1), ("d", 1)]
        assert (it.courier.waiting, await it.waiting()) == (0, 0)


async def test_the_oldest_that_waits_is_known_when_others_were_let_go_of() -> None:
    async with site(concurrency=1) as it:
        it.answers = lambda _user, _number: FAILED
        for number, user in enumerate("aab"):
            it.outbox.keep(message("user.online", user, T + number, {"data": number}, str(number)))
        await it.look()
        assert (it.courier.waiting, it.courier.oldest_at) == (3, T)
        [first] = await it.outbox.read("crm", "", 1)
        await it.outbox.done("crm", first.place)  # by another sender
        await it.after(RESCAN)
        assert (it.courier.waiting, it.courier.oldest_at) == (2, T + 1)


async def test_a_store_that_is_away_makes_no_event_come_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "PAUSE", 0)
    async with site() as it:
        done, refusals = it.outbox.done, iter(range(3))

        async def away(name: str, place: str) -> None:
            if next(refusals, None) is not None:
                raise StoreUnavailableError
            await done(name, place)

        monkeypatch.setattr(it.outbox, "done", away)
        it.commit(("a", 1), ("a", 2))
        await it.look()
        await eventually(lambda: it.courier.waiting == 0)
        assert it.seen == [("a", 1), ("a", 2)]


async def test_an_attempt_that_breaks_is_one_that_failed() -> None:
    async with site() as it:

        def broken(_user: str, _number: int) -> Answer:
            raise RuntimeError("a mistake")

        it.answers = broken
        it.commit(("a", 1))
        await it.look()
        it.answers = lambda _user, _number: TAKEN
        await it.after(1)
        assert (it.counts.failed, it.counts.sent) == (1, 1)


async def test_where_more_is_committed_all_the_time_what_is_queued_is_sent_meanwhile() -> None:
    class Busy(MemoryOutbox):
        async def take(self, endpoints: Sequence[Endpoint], now: int) -> Taken:
            await asyncio.sleep(0)
            self.keep(message("user.online", "acme\x1fa", T, {"userId": "a"}, str(next(numbers))))
            return await super().take(endpoints, now)

    numbers = itertools.count()
    endpoint, outbox = Endpoint("crm", "http://127.0.0.1:1", (b"key",)), Busy(Bounds(queue=1_000_000))
    webhooks = Webhooks(outbox, [endpoint], Policy(), lambda: T, Duty("webhooks", LocalLeases(), ttl=1))
    task = asyncio.create_task(webhooks.run())
    try:
        await eventually(lambda: webhooks.counts["crm"].failed)
    finally:
        await end([task])


def test_the_policy_keeps_to_the_contract() -> None:
    assert Policy().retry_for >= 300
