import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from conftest import eventually

from gateway import hooks as hooks_module
from gateway.hooks import Hooks
from gateway.presence.model import Status, Transition, UserStatus

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
