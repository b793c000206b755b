from __future__ import annotations

from conftest import TIMING, Clock

from gateway.presence.figures import CAUSES, Commits, LogFigures
from gateway.presence.model import HEARTBEATS_STOPPED, Connection, Ending, Status, Transition, UserStatus
from gateway.presence.store import Commit
from gateway.presence.store_memory import MemoryStore
from gateway.presence.view import RESYNCHRONISED

OFFLINE, ONLINE, AWAY = Status.OFFLINE, Status.ONLINE, Status.AWAY
T = 1_000_000


def change(was: Status, now: Status, reason: str, *, at: int = T, due: int | None = None) -> Transition:
    user = UserStatus(tenant="acme", user_id="alice", status=now, version=1)
    return Transition(position=1, at=at, was=was, now=user, reason=reason, due=due)


def log_figures(clock: Clock, *, near: bool = False) -> LogFigures:
    return LogFigures(clock, TIMING, near=near)


def counted(counts: dict[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if count}


# What this node commits


def test_commits_are_counted_by_what_they_made_of_a_user_and_why() -> None:
    commits = Commits()
    commits.note(Commit(1, (change(OFFLINE, ONLINE, "connected"), change(ONLINE, AWAY, "inactive"))))
    commits.note(Commit(2, (change(AWAY, OFFLINE, Ending.LOST), change(OFFLINE, ONLINE, "connected"))))
    commits.note(Commit(3))
    assert counted(commits.online) == {"connected": 2}
    assert counted(commits.changed) == {"inactive": 1}
    assert counted(commits.offline) == {"connection lost": 1}
    assert commits.offline["goodbye"] == 0


def test_how_late_a_sweep_was_counts_for_those_whose_time_was_over() -> None:
    commits = Commits()
    commits.note(Commit(1, (change(ONLINE, OFFLINE, Ending.LOST, due=T - 200),)))
    commits.note(Commit(2, (change(ONLINE, OFFLINE, Ending.GOODBYE),)))
    assert (commits.late.count, commits.late.sum) == (1, 0.2)


def test_the_log_lags_from_when_a_sweep_saw_its_end_until_the_view_has_come_there() -> None:
    commits = Commits()
    assert commits.lag(0, T) == 0
    commits.swept(Commit(5), 5, T)
    assert commits.lag(5, T + 100) == 0
    commits.swept(Commit(8), 5, T + 250)
    assert commits.lag(5, T + 350) == 0.1
    commits.swept(Commit(12), 6, T + 500)  # the first end that was seen is what it still has not read
    assert commits.lag(6, T + 750) == 0.5
    assert commits.lag(8, T + 750) == 0
    commits.swept(Commit(12), 8, T + 750)
    assert commits.lag(8, T + 1000) == 0.25
    assert commits.swept_at == T + 750


# How long it takes to be seen


def test_the_delay_of_the_log_is_from_the_commit_to_this_node() -> None:
    clock = Clock(T + 30)
    figures = log_figures(clock)
    figures.publish([change(OFFLINE, ONLINE, "connected", at=T - 500), change(OFFLINE, ONLINE, "connected")])
    figures.publish([change(OFFLINE, ONLINE, RESYNCHRONISED)])
    figures.publish([change(OFFLINE, ONLINE, "connected", at=T + 40)])  # by a clock that is ahead
    assert (figures.delay.count, figures.delay.sum) == (2, 0.03)


def test_a_log_that_is_near_has_no_delay_to_measure() -> None:
    figures = log_figures(Clock(T), near=True)
    figures.publish([change(OFFLINE, ONLINE, "connected")])
    assert figures.delay.count == 0


def test_a_leave_is_detected_from_the_last_that_was_there() -> None:
    clock = Clock(T)
    figures = log_figures(clock)
    cases = {
        "said": (Ending.GOODBYE, T - 20, None, 0.02),
        "lost": (Ending.LOST, T - 10, T - 100, (TIMING.grace + 100) / 1000),
        "heartbeats": (HEARTBEATS_STOPPED, T - 10, T - 50, (TIMING.ttl + 50) / 1000),
        "node_died": (Ending.NODE_DIED, T, T - 30, (TIMING.lease + TIMING.grace + 30) / 1000),
    }
    for reason, at, due, _took in cases.values():
        figures.publish([change(ONLINE, OFFLINE, reason, at=at, due=due)])
    figures.publish([change(ONLINE, OFFLINE, RESYNCHRONISED)])
    assert {cause: (each.count, each.sum) for cause, each in figures.leaves.items()} == {
        cause: (1, took) for cause, (_reason, _at, _due, took) in cases.items()
    }
    assert set(cases) == set(CAUSES)


async def test_the_store_says_when_the_time_was_over_of_whoever_goes_since_it_was() -> None:
    store = MemoryStore(TIMING)
    await store.renew("a", T)
    connection = Connection(tenant="acme", user_id="alice", id="c", node="a", door="websocket", connected_at=T)
    await store.connect(connection, T)
    await store.disconnect(connection, Ending.LOST, T + 10)
    commits = Commits()
    commits.note(await store.sweep(T + 10 + TIMING.grace + 130))
    assert (commits.late.count, commits.late.sum) == (1, 0.13)
