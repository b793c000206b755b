import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
from conftest import eventually

from gateway.channels.changes import EVENTS, ChannelChange
from gateway.channels.names import scope_of
from gateway.inprocess import hooks as hooks_module
from gateway.inprocess.hooks import Hooks
from gateway.presence.model import Profile, Status, Transition, UserStatus

OFFLINE, ONLINE, AWAY = Status.OFFLINE, Status.ONLINE, Status.AWAY


def change(user: str, was: Status, now: Status) -> Transition:
    status = UserStatus(tenant="acme", user_id=user, status=now, version=1)
    return Transition(position=1, at=0, was=was, now=status, reason="test")


class Heard:
    """A hook that remembers whom it was told of."""

    def __init__(self) -> None:
        self.users: list[str] = []

    async def __call__(self, transition: Transition) -> None:
        self.users.append(transition.user_id)


@asynccontextmanager
async def running(hooks: Hooks) -> AsyncIterator[None]:
    task = asyncio.create_task(hooks.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_hook_hears_of_its_event_in_order() -> None:
    hooks, online, offline, changed = Hooks(), Heard(), Heard(), Heard()
    hooks.add("user-online", online)
    hooks.add("user-offline", offline)
    hooks.add("user-status-changed", changed)
    async with running(hooks):
        hooks.publish([change("alice", OFFLINE, ONLINE), change("bob", ONLINE, OFFLINE)])
        hooks.publish([change("carol", ONLINE, AWAY), change("dave", ONLINE, ONLINE), change("eve", OFFLINE, AWAY)])
        await eventually(lambda: len(online.users) + len(offline.users) + len(changed.users) == 4)
    assert (online.users, offline.users, changed.users) == (["alice", "eve"], ["bob"], ["carol"])


async def test_hooks_of_channels_are_told_of_them_and_of_nothing_else() -> None:
    hooks, online = Hooks(), Heard()
    heard: dict[str, list[ChannelChange]] = {event: [] for event in EVENTS}
    for event, changes in heard.items():

        async def hook(change: ChannelChange, changes: list[ChannelChange] = changes) -> None:
            changes.append(change)

        hooks.add(event, hook)
    hooks.add("user-online", online)
    with pytest.raises(ValueError, match="once is for user-online"):
        hooks.add("member-added", Heard(), once=True)

    def channel_change(scope: str, name: str, was: Status, now: Status) -> Transition:
        status = UserStatus(tenant=scope, user_id=name, status=now, version=3, profile=Profile(name="Alice"))
        return Transition(position=1, at=7, was=was, now=status, reason="test")

    members, channels = scope_of("acme", "presence-a"), scope_of("acme")
    async with running(hooks):
        hooks.publish_channels(
            [
                channel_change(channels, "presence-a", OFFLINE, ONLINE),
                channel_change(members, "alice", OFFLINE, ONLINE),
                channel_change(members, "alice", ONLINE, AWAY),
                channel_change(members, "alice", AWAY, OFFLINE),
                channel_change(channels, "presence-a", ONLINE, OFFLINE),
            ]
        )
        hooks.publish([change("bob", OFFLINE, ONLINE)])
        await eventually(lambda: all(heard.values()) and online.users)
    assert online.users == ["bob"]
    assert {event: [each.event for each in changes] for event, changes in heard.items()} == {e: [e] for e in EVENTS}
    [added], [vacated] = heard["member-added"], heard["channel-vacated"]
    assert (added.tenant, added.channel, added.user_id, added.version, added.at) == (
        "acme",
        "presence-a",
        "alice",
        3,
        7,
    )
    assert added.info == {"name": "Alice"}
    assert (vacated.channel, vacated.user_id) == ("presence-a", None)


async def test_what_came_before_the_start_is_not_lost() -> None:
    hooks, heard = Hooks(), Heard()
    hooks.add("user-online", heard)
    hooks.publish([change("alice", OFFLINE, ONLINE)])
    async with running(hooks):
        await eventually(lambda: heard.users == ["alice"])


def test_an_event_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="no event 'user-onlin'; there are user-online, user-offline, user-status-cha"):
        Hooks().add("user-onlin", Heard())


async def test_a_hook_that_fails_goes_on_and_harms_no_other() -> None:
    hooks, heard, failed = Hooks(), Heard(), Heard()

    async def fail(transition: Transition) -> None:
        await failed(transition)
        raise RuntimeError("of the application's")

    hooks.add("user-online", fail)
    hooks.add("user-online", heard)
    async with running(hooks):
        hooks.publish([change("alice", OFFLINE, ONLINE), change("bob", OFFLINE, ONLINE)])
        await eventually(lambda: len(heard.users) == len(failed.users) == 2)
    assert (failed.users, heard.users) == (["alice", "bob"], ["alice", "bob"])


async def test_a_slow_hook_holds_up_no_other() -> None:
    hooks, heard = Hooks(), Heard()

    async def hang(_transition: Transition) -> None:
        await asyncio.Event().wait()

    hooks.add("user-online", hang)
    hooks.add("user-online", heard)
    async with running(hooks):
        hooks.publish([change("alice", OFFLINE, ONLINE), change("bob", OFFLINE, ONLINE)])
        await eventually(lambda: heard.users == ["alice", "bob"])


async def test_past_its_backlog_a_hook_loses_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks_module, "BACKLOG", 2)
    hooks, heard = Hooks(), Heard()
    hooks.add("user-online", heard)
    hooks.publish([change(user, OFFLINE, ONLINE) for user in ("alice", "bob", "carol")])
    async with running(hooks):
        await eventually(lambda: heard.users == ["bob", "carol"])


async def test_a_hook_that_comes_too_late_is_told_so() -> None:
    hooks = Hooks()
    running = asyncio.create_task(hooks.run())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="before the application starts"):
        hooks.add("user-online", print)  # type: ignore[arg-type]  # never called
    running.cancel()


async def test_a_hook_whose_own_task_was_cancelled_is_called_again() -> None:
    hooks, called = Hooks(), []

    async def fragile(transition: Transition) -> None:
        called.append(transition.user_id)
        raise asyncio.CancelledError

    hooks.add("user-online", fragile)
    running = asyncio.create_task(hooks.run())
    hooks.publish([change(user, Status.OFFLINE, Status.ONLINE) for user in ("alice", "bob")])
    await eventually(lambda: called == ["alice", "bob"])
    running.cancel()


async def test_a_hook_that_hangs_is_cancelled_after_its_time_and_called_with_the_next() -> None:
    hooks, called, cancelled = Hooks(), list[str](), list[str]()

    async def hang(transition: Transition) -> None:
        called.append(transition.user_id)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(transition.user_id)

    hooks.add("user-online", hang, timeout=0.05)
    async with running(hooks):
        hooks.publish([change("alice", OFFLINE, ONLINE), change("bob", OFFLINE, ONLINE)])
        await eventually(lambda: cancelled == ["alice", "bob"])
        await eventually(lambda: hooks.outcomes["timed_out"] == 2)
    assert called == ["alice", "bob"]


async def test_a_hook_that_does_not_heed_its_cancellation_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks_module, "GRACE", 0.05)
    hooks, called, freed = Hooks(), list[str](), asyncio.Event()

    async def stubborn(transition: Transition) -> None:
        called.append(transition.user_id)
        while not freed.is_set():
            with suppress(asyncio.CancelledError):
                await freed.wait()
        raise RuntimeError("late")

    hooks.add("user-online", stubborn, timeout=0.05)
    async with running(hooks):
        hooks.publish([change("alice", OFFLINE, ONLINE), change("bob", OFFLINE, ONLINE)])
        await eventually(lambda: called == ["alice", "bob"])
    freed.set()
    await eventually(lambda: not hooks._left)


async def test_what_became_of_calls_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks_module, "BACKLOG", 3)
    hooks = Hooks()

    async def hook(transition: Transition) -> None:
        if transition.user_id == "carol":
            raise RuntimeError

    hooks.add("user-online", hook)
    hooks.publish([change(user, OFFLINE, ONLINE) for user in ("alice", "bob", "carol", "dave")])
    async with running(hooks):
        await eventually(lambda: hooks.outcomes["done"] == 2)
    assert hooks.outcomes == {"done": 2, "failed": 1, "timed_out": 0, "dropped": 1, "missed": 0}


def test_a_function_that_is_not_async_is_refused_with_what_to_do() -> None:
    with pytest.raises(TypeError, match="print is no async function: write `async def`"):
        Hooks().add("user-online", print)  # type: ignore[arg-type]  # which is why
    with pytest.raises(TypeError, match="is no async function"):
        Hooks().add("user-online", lambda _change: asyncio.sleep(0))
    Hooks().add("user-online", Heard())
    Hooks().add("user-online", partial(Heard.__call__, Heard()))


def test_what_is_called_once_has_a_name_of_its_own() -> None:
    async def hook(_transition: Transition) -> None: ...

    hooks = Hooks()
    hooks.add("user-online", hook, once=True)
    hooks.add("user-offline", hook, once=True)  # the event is part of it
    hooks.add("user-online", hook, once=True, name="mails")
    assert [each.name for each in hooks.once] == [
        f"user-online:{__name__}.{hook.__qualname__}",
        f"user-offline:{__name__}.{hook.__qualname__}",
        "mails",
    ]
    with pytest.raises(ValueError, match="two hooks of the name 'mails'"):
        hooks.add("user-offline", Heard(), once=True, name="mails")
    with pytest.raises(ValueError, match="name what is called once"):
        hooks.add("user-online", partial(hook), once=True)
    with pytest.raises(ValueError, match="timeout takes seconds"):
        hooks.add("user-online", hook, timeout=0)
