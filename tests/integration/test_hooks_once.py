"""Hooks once in the cluster: real nodes, killed in the middle of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from conftest import ROOT, SECRET, SERVICE_KEY, STEP, Process, _collect, eventually
from redis_servers import fresh_prefix

LEASE = 1.5


class Calls:
    """What the hooks of all nodes have written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def of(self, word: str) -> list[tuple[int, str, int]]:
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [(int(pid), user, int(version)) for said, pid, user, version in lines if said == word]

    def users(self, word: str) -> list[str]:
        return [user for _pid, user, _version in self.of(word)]


@asynccontextmanager
async def application(calls: Calls, pause: float, **variables: str) -> AsyncIterator[Process]:
    process = Process(
        await asyncio.create_subprocess_exec(
            sys.executable,
            *(str(Path(__file__).parent / "hook_node.py"), str(calls.path), str(pause)),
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
            | {"JWT_SECRET": SECRET, "SERVICE_API_KEYS": SERVICE_KEY, "NODE_LEASE": str(LEASE)}
            | variables,
            stderr=asyncio.subprocess.PIPE,
        )
    )
    reader = asyncio.create_task(_collect(process))
    try:
        process.url = (await process.logged(r"(http://127[\d.]+:\d+)", within=4 * STEP))[1]
        yield process
    finally:
        if process.process.returncode is None:
            process.process.kill()
            await process.process.wait()
        await reader


async def comes(node: Process, *users: str) -> None:
    async with aiohttp.ClientSession(headers={"X-API-Key": SERVICE_KEY}) as session:
        for user in users:
            async with session.post(f"{node.url}/presence/online", json={"userId": user}) as answer:
                assert answer.status == 200, await answer.text()


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path / "calls")


async def holder(calls: Calls, nodes: list[Process]) -> Process:
    """The node that calls the hook."""
    pid = (await eventually(lambda: calls.of("begun")))[-1][0]
    return next(node for node in nodes if node.process.pid == pid)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
async def test_no_transition_is_lost_or_called_twice_when_its_node_goes(
    calls: Calls, redis_url: str, closing: AsyncExitStack, sent: signal.Signals
) -> None:
    variables = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix()}
    starting = [closing.enter_async_context(application(calls, 0.1, **variables)) for _ in range(2)]
    nodes = list(await asyncio.gather(*starting))
    await comes(nodes[0], "user-0")
    held = await holder(calls, nodes)
    other = next(node for node in nodes if node is not held)
    users = [f"user-{n}" for n in range(10)]
    await comes(other, *users[1:6])
    await eventually(lambda: len(calls.of("done")) >= 3)
    held.process.send_signal(sent)  # in the middle of a call, mostly
    await comes(other, *users[6:])
    await held.process.wait()
    await eventually(lambda: set(calls.users("done")) == set(users), within=4 * STEP)
    begun, done = Counter(calls.users("begun")), Counter(calls.users("done"))
    # Each is done once, but for one that the kill may have come behind, before its position was kept.
    twice = [user for user in users if begun[user] > 1]
    assert len(twice) <= (1 if sent is signal.SIGKILL else 0)
    assert all(done[user] == 1 for user in users if user not in twice)
    assert max(begun.values()) <= 2
    # In order on either node, and the second goes on where the first was.
    first = [user for pid, user, _ in calls.of("begun") if pid == held.process.pid]
    second = [user for pid, user, _ in calls.of("begun") if pid == other.process.pid]
    assert first == users[: len(first)]
    assert second == users[-len(second) :]
    assert len(first) + len(second) == len(users) + len(twice)
    # What hangs holds up nothing, and what is called on every node is.
    await eventually(lambda: set(calls.users("hung")) == set(users), within=4 * STEP)
    assert set(calls.users("everywhere")) == set(users)
    assert {pid for pid, _user, _version in calls.of("everywhere")} == {node.process.pid for node in nodes}


async def test_what_comes_while_no_node_calls_is_called_by_the_next(
    calls: Calls, redis_url: str, closing: AsyncExitStack
) -> None:
    variables = {"REDIS_URL": redis_url, "REDIS_PREFIX": fresh_prefix(), "PRESENCE_TTL": "1"}
    first = await closing.enter_async_context(application(calls, 0, **variables))
    await comes(first, "alice", "carol")
    await eventually(lambda: "carol" in calls.users("begun"))  # by when the call before it is kept
    first.process.kill()
    await first.process.wait()
    # Alice's heartbeat runs out while nobody is there; whoever comes next finds out, and calls the hook with it.
    second = await closing.enter_async_context(application(calls, 0, **variables))
    await comes(second, "bob")
    await eventually(lambda: calls.users("done").count("alice") == 2, within=4 * STEP)
    await eventually(lambda: "bob" in calls.users("done"), within=4 * STEP)
    assert [version for _pid, user, version in calls.of("done") if user == "alice"] == [1, 2]
