"""Who is invisible is so in channels, too, however fast that changes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.channels import hiding
from gateway.channels.hiding import Hiding
from gateway.channels.membership import Membership
from gateway.channels.model import Person
from gateway.errors import StoreUnavailableError
from gateway.presence.model import Choice, Chosen, Ending
from gateway.presence.store import Commit

ROOM = "presence-room-1"


class Store:
    """What `Membership` asks of tracker and view, where a commit takes a turn of its own."""

    node = "n"

    def __init__(self) -> None:
        self.chosen = Choice(Chosen.ONLINE)
        self.seen: Choice | None = None
        """What the view shows where it is behind; None where it is not."""
        self.commits: asyncio.Queue[None] = asyncio.Queue()
        self.telling = asyncio.Event()

    def now(self) -> int:
        return 0

    async def connect(self, _connection: Any) -> Commit:
        return Commit(0)

    async def disconnect(self, _connection: Any, _ending: Any) -> Commit:
        return Commit(0)

    async def set_status(self, _scope: str, _user_id: str, choice: Choice) -> Commit:
        self.telling.set()
        await self.commits.get()
        self.chosen = choice
        return Commit(0)

    def own_status(self, _scope: str, _user_id: str, _now: int) -> Any:
        return SimpleNamespace(own=SimpleNamespace(choice=self.seen or self.chosen))


@pytest.mark.parametrize("is_hidden", [True, False])
async def test_who_turns_back_while_the_store_is_told_is_in_channels_as_in_presence(*, is_hidden: bool) -> None:
    store, presence, key = Store(), SimpleNamespace(hidden=set[tuple[str, str]]()), ("acme", "alice")
    membership = Membership(store, SimpleNamespace(view=store), presence)  # type: ignore[arg-type]  # what is asked of them
    if is_hidden:
        presence.hidden.add(key)
        store.chosen = Choice(Chosen.INVISIBLE)
    await membership.enter("acme", ROOM, Person(user_id="alice"))
    presence.hidden ^= {key}
    first = asyncio.create_task(membership.follow_visibility(*key))
    await store.telling.wait()
    presence.hidden ^= {key}
    second = asyncio.create_task(membership.follow_visibility(*key))
    for _ in range(3):
        await asyncio.sleep(0)  # it has looked
    for _ in range(2):
        store.commits.put_nowait(None)
    await asyncio.gather(first, second)
    assert store.chosen.status is (Chosen.INVISIBLE if is_hidden else Chosen.ONLINE)


@pytest.mark.parametrize("is_behind", [False, True])
@pytest.mark.parametrize("is_hidden", [True, False])
async def test_who_turns_while_they_come_in_is_in_the_channel_as_in_presence(
    *, is_hidden: bool, is_behind: bool
) -> None:
    store, presence, key = Store(), SimpleNamespace(hidden=set[tuple[str, str]]()), ("acme", "alice")
    membership = Membership(store, SimpleNamespace(view=store), presence)  # type: ignore[arg-type]  # what is asked of them
    # As the channel was when they left it, they are not in presence any more.
    if not is_hidden:
        presence.hidden.add(key)
    store.chosen = Choice(Chosen.INVISIBLE if is_hidden else Chosen.ONLINE)
    store.seen = store.chosen if is_behind else None
    entering = asyncio.create_task(membership.enter("acme", ROOM, Person(user_id="alice")))
    await store.telling.wait()
    assert membership.has(*key), "what presence says meanwhile is for the channel, too"
    presence.hidden ^= {key}
    following = asyncio.create_task(membership.follow_visibility(*key))
    for _ in range(3):
        await asyncio.sleep(0)  # it has looked
    for _ in range(3):
        store.commits.put_nowait(None)
    await asyncio.gather(entering, following)
    assert store.chosen.status is (Chosen.INVISIBLE if is_hidden else Chosen.ONLINE)


async def test_who_comes_again_as_the_store_forgets_them_is_invisible_all_the_same() -> None:
    class Forgetful(Store):
        async def connect(self, _connection: Any) -> Commit:
            self.chosen = Choice(Chosen.ONLINE)
            return Commit(0)

    store, key = Forgetful(), ("acme", "alice")
    store.chosen = Choice(Chosen.INVISIBLE)
    store.commits.put_nowait(None)
    membership = Membership(store, SimpleNamespace(view=store), SimpleNamespace(hidden={key}))  # type: ignore[arg-type]  # likewise
    await membership.enter("acme", ROOM, Person(user_id="alice"))
    assert store.chosen.status is Chosen.INVISIBLE


async def test_who_cannot_be_told_to_the_store_is_not_followed() -> None:
    class Away(Store):
        async def set_status(self, _scope: str, _user_id: str, _choice: Choice) -> Commit:
            raise StoreUnavailableError("away")

    store, key = Away(), ("acme", "alice")
    membership = Membership(store, SimpleNamespace(view=store), SimpleNamespace(hidden={key}))  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailableError):
        await membership.enter("acme", ROOM, Person(user_id="alice"))
    assert not membership.has(*key)
    assert [*membership.all_here()] == []


class Prompt(Store):
    """One that knows at once, of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, Chosen]] = []
        self.by_scope: dict[str, Choice] = {}

    async def set_status(self, scope: str, _user_id: str, choice: Choice) -> Commit:
        self.told.append((scope, choice.status))
        self.by_scope[scope] = choice
        return Commit(0)

    def own_status(self, scope: str, _user_id: str, _now: int) -> Any:
        return SimpleNamespace(own=SimpleNamespace(choice=self.by_scope.get(scope, self.chosen)))


async def turns(loops: int = 20) -> None:
    for _ in range(loops):
        await asyncio.sleep(0)


async def test_who_turns_on_and_on_costs_their_channels_one_pass_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = asyncio.Event()

    async def wait(_seconds: float) -> None:
        await pause.wait()

    monkeypatch.setattr(hiding, "asyncio", SimpleNamespace(create_task=asyncio.create_task, sleep=wait))
    store, presence, key = Prompt(), SimpleNamespace(hidden=set[tuple[str, str]]()), ("acme", "alice")
    membership = Membership(store, SimpleNamespace(view=store), presence)  # type: ignore[arg-type]  # what is asked of them
    following = Hiding(membership)
    news: Any = [
        SimpleNamespace(tenant="acme", user_id="alice", reason="set"),
        SimpleNamespace(tenant="acme", user_id="bob"),
    ]
    for number in range(100):
        await membership.enter("acme", f"presence-{number}", Person(user_id="alice"))
    following.publish(news)  # busy, and back: nothing of that is for channels
    assert not following._following
    for _ in range(51):
        presence.hidden ^= {key}
        following.publish(news)
        await turns()
    assert [status for _scope, status in store.told] == [Chosen.INVISIBLE] * 100, "at once, and then not again"
    presence.hidden ^= {key}
    following.publish(news)
    pause.set()
    await turns()
    assert [status for _scope, status in store.told[100:]] == [Chosen.ONLINE] * 100, "as it is by then"
    assert (following._following, following._again) == ({}, set())


async def test_who_was_invisible_when_they_came_is_followed_when_they_are_not() -> None:
    store, key = Prompt(), ("acme", "alice")
    presence = SimpleNamespace(hidden={key})
    membership = Membership(store, SimpleNamespace(view=store), presence)  # type: ignore[arg-type]  # what is asked of them
    following = Hiding(membership)
    await membership.enter("acme", ROOM, Person(user_id="alice"))
    presence.hidden.clear()
    following.publish([SimpleNamespace(tenant="acme", user_id="alice", reason="set")])  # type: ignore[list-item]  # likewise
    await turns()
    assert [status for _scope, status in store.told] == [Chosen.INVISIBLE, Chosen.ONLINE]
    await following.close()
    await membership.leave("acme", ROOM, Person(user_id="alice"), Ending.GOODBYE)
    assert (membership._scopes, membership._hidden) == ({}, {})
