"""What a node knows of revoked tokens, and the register in which nodes find each other's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from conftest import STEP, Clock, make_settings, make_token
from redis.crc import key_slot
from redis_servers import fresh_prefix, redis_server

from gateway.access.auth import Authenticator, Identity
from gateway.errors import (
    InvalidPayloadError,
    NotReadyError,
    StoreUnavailableError,
    TokenInvalidError,
    UnavailableError,
)
from gateway.nodes.bus import LocalBus
from gateway.presence.model import NOBODY
from gateway.redis.connection import connect
from gateway.revocation import register_redis
from gateway.revocation.register_redis import RevocationRegister
from gateway.revocation.revocations import Revocation, Revocations
from gateway.revocation.revoker import Revoker
from gateway.wire import timestamp

T = 1_800_000_000_000
LATER = T + 3_600_000


def bearer(user: str = "alice", *, tenant: str = "acme", **said: Any) -> Identity:
    said = {"jti": None, "issued_at": T - 1} | said
    return Identity(tenant=tenant, user_id=user, profile=NOBODY, expires_at=None, **said)


def of(**said: Any) -> Revocation:
    defaults: dict[str, Any] = {"tenant": "acme", "now": T, "ttl": 3600.0}
    return Revocation.of(**(defaults | said))


# What is said


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, "by one of jti, userId, and allUsers"),
        ({"jti": "a", "user_id": "alice"}, "by one of"),
        ({"user_id": "alice", "all_users": True}, "by one of"),
        ({"jti": ""}, "a jti has"),
        ({"jti": "a\x1fb"}, "a jti has"),
        ({"jti": "x" * 513}, "a jti has"),
        ({"jti": "a", "issued_before": datetime(2026, 1, 1, tzinfo=UTC)}, "goes with userId only"),
        ({"user_id": "a\nb"}, "an id has"),
        ({"user_id": "alice", "tenant": ""}, "an id has"),
        ({"user_id": "alice", "issued_before": datetime.fromtimestamp(T / 1000 + 61, UTC)}, "lies ahead"),
        ({"user_id": "alice", "issued_before": datetime(2026, 1, 1)}, "must say its zone"),  # noqa: DTZ001
        ({"jti": "a", "expires_at": datetime.fromtimestamp(T / 1000, UTC)}, "has passed"),
    ],
)
def test_what_names_no_tokens_is_refused_with_what_would(said: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidPayloadError, match=why):
        of(**said)


def test_it_lasts_as_long_as_it_is_said_to_or_as_the_setting_says() -> None:
    assert of(jti="a").until == T + 3_600_000
    assert of(jti="a", expires_at=datetime.fromtimestamp(T / 1000 + 5, UTC)).until == T + 5000


def test_times_before_1970_and_past_the_year_9999_are_as_the_last_that_can_be_told() -> None:
    """Redis's script reads digits, and no timestamp can be written past that year."""
    assert of(user_id="alice", issued_before=datetime(1960, 1, 1, tzinfo=UTC)).before == 0
    late = of(jti="a", expires_at=datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-12))))
    assert timestamp(late.until) == "9999-12-31T23:59:59.000Z"


# What is covered


def test_a_token_is_found_by_its_id_in_its_tenant() -> None:
    known = Revocations()
    assert not known.cover(bearer(jti="a"))
    assert known.add(of(jti="a"))
    assert known.cover(bearer(jti="a"))
    assert known.cover(bearer("bob", jti="a", issued_at=None))
    assert not known.cover(bearer(jti="b"))
    assert not known.cover(bearer(jti=None))
    assert not known.cover(bearer(tenant="other", jti="a"))


@pytest.mark.parametrize(("issued_at", "covered"), [(T - 1, True), (T, False), (T + 1, False), (None, True)])
def test_a_user_s_and_a_tenant_s_tokens_by_when_they_were_issued(issued_at: int | None, *, covered: bool) -> None:
    of_user, of_all = Revocations(), Revocations()
    of_user.add(of(user_id="alice"))
    of_all.add(of(all_users=True))
    assert of_user.cover(bearer(issued_at=issued_at)) is covered
    assert of_all.cover(bearer(issued_at=issued_at)) is covered
    assert not of_user.cover(bearer("bob", issued_at=issued_at))
    assert of_all.cover(bearer("bob", issued_at=issued_at)) is covered
    assert not of_all.cover(bearer(tenant="other", issued_at=issued_at))


def test_two_of_one_name_take_back_what_either_does() -> None:
    known = Revocations()
    long, late = of(user_id="alice", now=T - 1000, ttl=7200), of(user_id="alice")
    assert known.add(long)
    assert known.add(late)
    assert not known.add(long)
    assert list(known) == [Revocation("acme", long.until, "alice", before=T)]


def test_what_has_run_out_is_forgotten() -> None:
    known = Revocations()
    for each in (of(jti="a"), of(user_id="alice"), of(all_users=True)):
        known.add(each)
    known.forget(LATER - 1)
    assert len(known) == 3
    known.forget(LATER)
    assert len(known) == 0
    assert not known.cover(bearer(jti="a"))


@pytest.mark.parametrize("said", [{"jti": "a"}, {"user_id": "al ice"}, {"all_users": True}])
def test_a_name_says_it_all(said: dict[str, Any]) -> None:
    each = of(**said)
    assert Revocation.named(each.name, each.before, each.until) == each


async def test_a_token_says_its_id_and_when_it_was_issued() -> None:
    authenticator = Authenticator(make_settings())
    for claims, expected in (
        ({"jti": "a", "iat": 1_700_000_000}, ("a", 1_700_000_000_000)),
        ({"iat": 1_700_000_000.25}, (None, 1_700_000_000_250)),
        ({"jti": "x" * 513, "iat": -5}, (None, None)),
        ({"iat": float("nan")}, (None, None)),
        ({"iat": True}, (None, None)),
        ({"iat": "yesterday"}, (None, None)),
        ({"iat": 10**400}, (None, None)),
    ):
        identity = await authenticator.identify(make_token(**claims))
        assert (identity.jti, identity.issued_at) == expected


# The node


async def test_a_node_that_is_alone_refuses_and_tells() -> None:
    clock = Clock(T)
    revoker, told = Revoker(None, LocalBus(), clock, most=2), list[Revocation]()
    revoker.on_news = told.extend
    revoker.check(bearer(jti="a"))
    await revoker.revoke(of(jti="a"))
    await revoker.revoke(of(jti="a"))
    assert told == [of(jti="a")]
    with pytest.raises(TokenInvalidError, match="revoked"):
        revoker.check(bearer(jti="a"))
    await revoker.revoke(of(jti="b"))
    with pytest.raises(UnavailableError, match="2 revocations are kept"):
        await revoker.revoke(of(jti="c"))
    await revoker.revoke(of(jti="b", ttl=7200))
    clock.now = LATER  # the first has run out, and makes room
    await revoker.revoke(of(jti="c", now=LATER))
    assert sorted(each.name for each in revoker.known) == [of(jti="b").name, of(jti="c").name]


# The register


MakeRegister = Callable[..., Awaitable[RevocationRegister]]


@pytest.fixture
async def make(redis_url: str) -> AsyncIterator[MakeRegister]:
    async with AsyncExitStack() as stack:
        shared = fresh_prefix()

        async def make(url: str = redis_url, prefix: str = shared, **bounds: int) -> RevocationRegister:
            client = connect(url, timeout=STEP)
            stack.push_async_callback(client.aclose)
            register = RevocationRegister(client, prefix, **bounds)
            stack.push_async_callback(register.close)
            return register

        yield make


async def test_what_one_puts_another_reads_once_and_in_order(
    make: MakeRegister, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register_redis, "CHUNK", 2)
    one, other = await make(), await make()
    assert await other.follow(T) == ([], True)
    said = [of(jti=f"{n}") for n in range(5)] + [of(user_id="älice"), of(all_users=True)]
    assert await one.put(said, T) == []
    assert await other.follow(T) == (said, True)
    assert await other.follow(T) == ([], True)
    assert await one.follow(T) == (said, True)
    await one.put([said[0], of(user_id="älice", ttl=7200)], T)  # the first is no news
    assert await other.follow(T) == ([of(user_id="älice", ttl=7200)], True)


async def test_what_was_read_before_a_failure_is_read_again(
    make: MakeRegister, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register_redis, "CHUNK", 2)
    one, other = await make(), await make()
    said = [of(jti=f"{n}") for n in range(5)]
    await one.put(said, T)
    run, answers = other._run, 0

    async def fails_once(*arguments: Any) -> Any:
        nonlocal answers
        answers += 1
        if answers == 2:
            raise StoreUnavailableError
        return await run(*arguments)

    monkeypatch.setattr(other, "_run", fails_once)
    with pytest.raises(StoreUnavailableError):
        await other.follow(T)
    assert await other.follow(T) == (said, True)


async def test_what_could_not_be_given_back_is_given_later() -> None:
    failures, put = [StoreUnavailableError()], list[Revocation]()

    class Lossy:
        async def put(self, revocations: Sequence[Revocation], now: int) -> Sequence[Revocation]:
            if revocations and failures and len(put) > 0:
                raise failures.pop()
            put.extend(revocations)
            return []

        async def follow(self, now: int) -> tuple[Sequence[Revocation], bool]:
            follows.append(now)
            return ([of(jti="theirs")] if len(follows) == 2 else []), len(follows) != 2

        async def close(self) -> None: ...

    follows = list[int]()
    revoker = Revoker(Lossy(), LocalBus(), Clock(T))
    await revoker.load()
    await revoker.revoke(of(jti="ours"))
    with pytest.raises(StoreUnavailableError):
        await revoker.load()
    assert revoker.known.cover(bearer(jti="theirs"))
    await revoker.load()
    assert put == [of(jti="ours"), of(jti="ours")]


async def test_one_that_is_revoked_again_and_again_while_redis_is_away_waits_once() -> None:
    away, put = [True], list[Revocation]()

    class Away:
        async def put(self, revocations: Sequence[Revocation], now: int) -> Sequence[Revocation]:
            if away:
                raise StoreUnavailableError
            put.extend(revocations)
            return []

        async def follow(self, now: int) -> tuple[Sequence[Revocation], bool]:
            return [], True

        async def close(self) -> None: ...

    revoker = Revoker(Away(), LocalBus(), Clock(T))
    for after in range(3):
        with pytest.raises(StoreUnavailableError):
            await revoker.revoke(of(user_id="alice", now=T + after))
    away.clear()
    await revoker.load()
    await revoker.load()
    assert put == [of(user_id="alice", now=T + 2)]


async def test_what_is_revoked_further_while_it_is_put_is_put_again() -> None:
    put = list[Revocation]()

    class Slow:
        async def put(self, revocations: Sequence[Revocation], now: int) -> Sequence[Revocation]:
            put.extend(revocations)
            await asyncio.sleep(0)
            return []

        async def follow(self, now: int) -> tuple[Sequence[Revocation], bool]:
            return [], True

        async def close(self) -> None: ...

    revoker = Revoker(Slow(), LocalBus(), Clock(T))
    first, further = of(user_id="alice"), of(user_id="alice", now=T + 1)
    await asyncio.gather(revoker.revoke(first), revoker.revoke(further))
    assert put == [first, further]


async def test_one_that_redis_refuses_keeps_nobody_from_hearing_of_others() -> None:
    class Refusing:
        async def put(self, revocations: Sequence[Revocation], now: int) -> Sequence[Revocation]:
            raise RuntimeError("an error of the script")

        async def follow(self, now: int) -> tuple[Sequence[Revocation], bool]:
            return [of(jti="theirs")], True

        async def close(self) -> None: ...

    revoker = Revoker(Refusing(), LocalBus(), Clock(T))
    for step in (revoker.revoke(of(jti="ours")), revoker.load()):
        with pytest.raises(RuntimeError):
            await step
    assert revoker.known.cover(bearer(jti="theirs"))


async def test_two_of_one_name_are_joined_there_too(make: MakeRegister) -> None:
    one, other = await make(), await make()
    long, late = of(user_id="alice", now=T - 1000, ttl=7200), of(user_id="alice")
    await one.put([late], T)
    await one.put([long], T)
    assert await other.follow(T) == ([Revocation("acme", long.until, "alice", before=T)], True)


async def test_one_of_before_all_times_does_not_stand_in_the_way_of_others(make: MakeRegister) -> None:
    one, other = await make(), await make()
    ancient = of(user_id="alice", issued_before=datetime(1960, 1, 1, tzinfo=UTC))
    await one.put([ancient], T)
    await one.put([ancient, of(jti="b")], T)
    assert await other.follow(T) == ([ancient, of(jti="b")], True)


async def test_what_has_run_out_is_read_by_nobody_and_makes_room(make: MakeRegister) -> None:
    one, other = await make(most=2), await make()
    await one.put([of(jti="a"), of(jti="b", ttl=7200)], T)
    assert await one.put([of(jti="c"), of(jti="a", ttl=3601)], T) == [of(jti="c")]
    assert len((await other.follow(T))[0]) == 2
    now = LATER + 1000
    assert await one.put([of(jti="c", now=now)], now) == []
    assert await other.follow(now) == ([of(jti="c", now=now)], True)
    fresh = await make()
    assert [each.jti for each in (await fresh.follow(now))[0]] == ["b", "c"]


async def test_a_reader_goes_on_though_all_that_it_knows_has_run_out(make: MakeRegister) -> None:
    one, other = await make(), await make()
    await one.put([of(jti="a")], T)
    await other.follow(T)
    await one.put([], LATER)
    await one.put([of(jti="b", now=LATER)], LATER)
    assert await other.follow(LATER) == ([of(jti="b", now=LATER)], True)


async def test_its_keys_are_in_one_slot(make: MakeRegister) -> None:
    assert len({key_slot(key.encode()) for key in (await make())._keys}) == 1


async def test_what_redis_lost_its_nodes_give_back(make: MakeRegister) -> None:
    async with redis_server() as server:
        clock = Clock(T)
        nodes = [Revoker(await make(server.url, "p"), LocalBus(), clock) for _ in range(2)]
        with pytest.raises(NotReadyError, match="this node is starting"):
            nodes[0].check(bearer())
        for node in nodes:
            await node.load()
        await nodes[0].revoke(of(jti="a"))
        await nodes[1].load()
        await server.kill()
        with pytest.raises(StoreUnavailableError):
            await nodes[0].revoke(of(jti="b"))
        with pytest.raises(StoreUnavailableError):
            await nodes[0].load()
        for refused in ("a", "b"):  # whatever becomes of the store
            with pytest.raises(TokenInvalidError):
                nodes[0].check(bearer(jti=refused))
        for path in server.directory.glob("**/*.rdb"):
            path.unlink()
        await server.start()
        await nodes[0].load()
        await nodes[1].load()
        fresh = Revoker(await make(server.url, "p"), LocalBus(), clock)
        await fresh.load()
        assert {each.jti for each in nodes[1].known} == {each.jti for each in fresh.known} == {"a", "b"}


async def test_what_is_revoked_twice_is_not_taken_for_a_loss(
    make: MakeRegister, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(T)
    registers = [await make() for _ in range(2)]
    one, other = (Revoker(register, LocalBus(), clock) for register in registers)
    given_back: list[Revocation] = []

    async def put(revocations: Sequence[Revocation], now: int) -> Sequence[Revocation]:
        given_back.extend(revocations)
        return []

    monkeypatch.setattr(registers[1], "put", put)
    for later in range(3):
        await one.revoke(of(user_id="alice", now=T + later))
        await other.load()
        await one.load()
    assert list(other.known) == [of(user_id="alice", now=T + 2)]
    assert given_back == []
    monkeypatch.undo()
    other.known.add(of(jti="a"))
    await one.revoke(of(user_id="alice", now=T + 3))
    await other.load()  # as after a failover to a copy that was behind
    await one.load()
    assert of(jti="a").name in one.known
