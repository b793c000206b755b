"""Who is let in when many come at once, with time passed in."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import Loop

from gateway.access.admission import JITTER, LONGEST, PATIENCE, TICK, Admission
from gateway.access.limits import Rate
from gateway.errors import NodeBusyError, RefusedError, ServerDrainingError

ROOM = round(10 + 10 * PATIENCE)
"""How many come in or wait at 10 a second: the burst, and the queue."""


def here() -> bool:
    return False


def even() -> float:
    """Dice without luck: no jitter."""
    return 0.5


def granted(turns: list[asyncio.Future[None] | None]) -> int:
    return sum(turn is None or (turn.done() and turn.exception() is None) for turn in turns)


async def test_a_burst_of_the_count_comes_in_at_once_and_sets_no_timer() -> None:
    loop = Loop()
    admission = Admission(Rate(10, 1), loop)
    assert [admission.enter(here) for _ in range(10)] == [None] * 10
    assert loop.timers == []
    assert (admission.waiting, admission.waited, admission.refused) == (0, 0, 0)


async def test_who_asks_to_come_in_at_once_takes_a_turn_or_leaves_no_trace() -> None:
    admission = Admission(Rate(2, 2), Loop())
    assert [admission.enter_at_once() for _ in range(4)] == [True, True, False, False]
    turn = admission.enter(here)
    assert turn is not None
    assert (admission.waiting, admission.waited, admission.refused) == (1, 0, 0)
    admission.close()
    with pytest.raises(ServerDrainingError):
        await turn


async def test_nobody_comes_in_at_once_past_those_who_wait_or_when_nobody_is_let_in() -> None:
    loop = Loop()
    admission = Admission(Rate(1, 1), loop)
    assert admission.enter(here) is None
    turn = admission.enter(here)
    loop.now += 10  # there is room, and the other has not been looked at yet
    assert not admission.enter_at_once()
    admission.close()
    assert not admission.enter_at_once()
    assert turn is not None
    with pytest.raises(ServerDrainingError):
        await turn


async def test_those_over_the_rate_wait_and_come_in_at_the_rate_in_their_order() -> None:
    loop = Loop()
    admission = Admission(Rate(10, 1), loop)
    turns = [admission.enter(here) for _ in range(30)]
    assert granted(turns) == 10
    for tenths in range(1, 21):
        for step in range(10):
            loop.run_until(100 + tenths / 10 - 0.1 + (step + 1) * TICK)
        assert abs(granted(turns) - 10 - tenths) <= 1
        assert granted(turns[: granted(turns)]) == granted(turns), "in their order"
    loop.run_until(102.1)
    assert granted(turns) == 30
    assert admission.waiting == 0
    assert admission.waited == 20
    assert admission.waited_seconds == pytest.approx(sum(n / 10 for n in range(1, 21)), abs=20 * 2 * TICK)
    loop.run_until(103)
    assert loop.waiting() == [], "nobody waits: nothing to look for"


async def test_who_comes_behind_others_waits_behind_them_whatever_has_become_free() -> None:
    loop = Loop()
    admission = Admission(Rate(1, 1), loop)
    first, second = admission.enter(here), admission.enter(here)
    loop.now = 110  # the loop was busy, and its timers are late
    third = admission.enter(here)
    assert first is None
    assert second is not None
    assert third is not None
    loop.run_until(110)
    assert second.done()
    assert not third.done()


async def test_nobody_waits_for_longer_than_the_patience_and_the_rest_are_refused() -> None:
    loop = Loop()
    admission = Admission(Rate(10, 1), loop, even)
    turns, refused = [], 0
    for _ in range(100):
        try:
            turns.append(admission.enter(here))
        except NodeBusyError:
            refused += 1
    assert len(turns) == 10 + 10 * PATIENCE
    assert refused == admission.refused == 100 - len(turns)
    for step in range(1, round(PATIENCE / TICK) + 2):
        loop.run_until(100 + step * TICK)
    assert granted(turns) == len(turns)


async def test_those_refused_are_asked_to_come_back_one_after_the_other_at_the_rate() -> None:
    loop = Loop()
    admission = Admission(Rate(10, 1), loop, even)
    assert waits(admission, ROOM + 100)[-100:] == pytest.approx(
        [PATIENCE / 2 + n / 10 for n in range(1, 101)], abs=0.002
    )
    loop.now += 5  # half of their time is over: whoever is refused now still comes behind them
    admission._timer = None
    assert waits(admission, 1) == pytest.approx([PATIENCE / 2 + 5.1], abs=0.002)


async def test_the_jitter_moves_each_a_little_and_nobody_is_sent_away_for_ever() -> None:
    for dice, factor in ((0.0, 1 - JITTER), (1.0, 1 + JITTER)):
        admission = Admission(Rate(10, 1), Loop(), lambda dice=dice: dice)  # type: ignore[misc]  # mypy's idea of lambdas
        all_of_them = waits(admission, 5000)
        assert all_of_them[ROOM] == pytest.approx((PATIENCE / 2 + 0.1) * factor, abs=0.002)
        assert max(all_of_them) == pytest.approx((PATIENCE / 2 + LONGEST) * factor, abs=0.002)


def waits(admission: Admission, count: int) -> list[float]:
    """How long each of so many who come is asked to stay away; 0 for those who are let in, or wait."""
    found = []
    for _ in range(count):
        try:
            admission.enter(here)
            found.append(0.0)
        except NodeBusyError as error:
            found.append(error.retry_after or 0.0)
    return found


async def test_who_left_while_waiting_costs_the_others_no_turn() -> None:
    loop = Loop()
    admission = Admission(Rate(1, 1), loop)
    gone: set[int] = set()
    turns = [admission.enter(lambda number=number: number in gone) for number in range(4)]  # type: ignore[misc]
    gone |= {1, 2}
    loop.run_until(101.02)
    assert turns[3] is not None
    assert turns[3].done()
    assert admission.left == 2
    for turn in turns[1:3]:
        assert turn is not None
        with pytest.raises(RefusedError):
            await turn
    assert admission.waited == 1


async def test_a_handler_that_was_ended_while_it_waited_costs_nothing_either() -> None:
    loop = Loop()
    admission = Admission(Rate(1, 1), loop)
    _, second, third = (admission.enter(here) for _ in range(3))
    assert second is not None
    assert third is not None
    second.cancel()
    loop.run_until(101.02)
    assert third.done()


async def test_once_closed_it_refuses_those_who_wait_and_those_who_come() -> None:
    loop = Loop()
    admission = Admission(Rate(1, 1), loop, even)
    _, waiting = admission.enter(here), admission.enter(here)
    admission.check_open()
    admission.close()
    admission.close()
    assert waiting is not None
    with pytest.raises(ServerDrainingError) as refused:
        await waiting
    assert refused.value.told() == {
        "code": "SERVER_DRAINING",
        "message": "this node is shutting down; connect again",
        "retryAfter": 2.0,
    }
    with pytest.raises(ServerDrainingError):
        admission.enter(here)
    with pytest.raises(ServerDrainingError):
        admission.enter_now()
    with pytest.raises(ServerDrainingError):
        admission.check_open()
    assert loop.waiting() == []
    assert admission.refused == 0


async def test_a_turn_that_cannot_be_waited_for_is_had_at_once_or_not_at_all() -> None:
    loop = Loop()
    admission = Admission(Rate(2, 1), loop, even)
    admission.enter_now()
    admission.enter_now()
    with pytest.raises(NodeBusyError) as refused:
        admission.enter_now()
    assert refused.value.told()["code"] == "RATE_LIMITED"
    assert admission.waiting == 0
    loop.now += 1
    admission.enter_now()


@given(st.integers(1, 200), st.sampled_from([1.0, 60.0]), st.lists(st.floats(0, 3), min_size=1, max_size=20))
def test_no_more_than_the_burst_and_the_rate_come_in_however_they_come(
    count: int, seconds: float, pauses: list[float]
) -> None:
    async def run() -> None:
        loop = Loop()
        admission = Admission(Rate(count, seconds), loop)
        turns: list[asyncio.Future[None] | None] = []
        for pause in pauses:
            loop.run_until(loop.now + pause)
            for _ in range(50):
                try:
                    turns.append(admission.enter(here))
                except NodeBusyError:
                    break
            assert granted(turns) <= count + (loop.now - 100) * count / seconds + 0.001
            assert admission.waiting <= max(1, count / seconds * PATIENCE)

    asyncio.run(run())
