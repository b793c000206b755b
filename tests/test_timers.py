"""The timing wheel, with time passed in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import Loop
from structlog.testing import capture_logs

from gateway.runtime.timers import RESOLUTION, Timer, TimerWheel


def run(loop: Loop, until: float) -> None:
    """Let time pass as a loop does: from one handle that is due to the next."""
    while (due := min(loop.waiting(), default=until + 1)) <= until:
        loop.run_until(max(due, loop.now))
    loop.now = until


def test_what_is_due_earlier_comes_earlier_in_whatever_order_it_was_set() -> None:
    loop, heard = Loop(), list[float]()
    wheel = TimerWheel(loop)
    for delay in (3.0, 1.0, 2.0, 0.5):
        wheel.call_later(delay, heard.append, delay)
    run(loop, 104)
    assert heard == [0.5, 1.0, 2.0, 3.0]


def test_what_was_set_for_one_moment_comes_in_the_order_in_which_it_was_set() -> None:
    loop, heard = Loop(), list[int]()
    wheel = TimerWheel(loop)
    for number in range(5):
        wheel.call_later(1, heard.append, number)
    run(loop, 102)
    assert heard == [0, 1, 2, 3, 4]


def test_the_arguments_are_the_callback_s() -> None:
    loop, heard = Loop(), list[tuple[int, str]]()
    TimerWheel(loop).call_later(1, lambda number, text: heard.append((number, text)), 7, "seven")
    run(loop, 102)
    assert heard == [(7, "seven")]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0, 1))
def test_nothing_comes_early_and_nothing_later_than_the_resolution(delays: list[float], start: float) -> None:
    loop = Loop()
    loop.now += start
    wheel, late = TimerWheel(loop), list[float]()
    for delay in delays:
        due = loop.now + delay
        wheel.call_later(delay, lambda due=due: late.append(loop.now - due))
    run(loop, loop.now + 101)
    assert len(late) == len(delays)
    assert all(-1e-9 <= each <= RESOLUTION + 1e-9 for each in late)


def test_each_moment_takes_one_turn_of_a_loop_that_counts_milliseconds() -> None:
    """As uvloop does, which calls back at once for what is due within half of one."""
    loop = Loop()
    wheel, heard = TimerWheel(loop), list[int]()
    for number in range(1, 2001):
        wheel.call_later(number * RESOLUTION, heard.append, number)
    for number in range(1, 2001):
        loop.run_until((100_000 + number * 25) / 1000)
        assert heard[-1] == number
        assert [round((due - loop.now) * 1000) for due in loop.waiting()] == [25] * (number < 2000)


def test_no_delay_is_still_not_now() -> None:
    loop, heard = Loop(), list[int]()
    wheel = TimerWheel(loop)
    wheel.call_later(0, heard.append, 1)
    assert heard == []
    run(loop, 100 + RESOLUTION)
    assert heard == [1]


def test_what_was_cancelled_does_not_come_and_what_shares_its_moment_does() -> None:
    loop, heard = Loop(), list[str]()
    wheel = TimerWheel(loop)
    cancelled = wheel.call_later(1, heard.append, "cancelled")
    wheel.call_later(1, heard.append, "kept")
    cancelled.cancel()
    cancelled.cancel()
    run(loop, 102)
    assert heard == ["kept"]
    cancelled.cancel()
    cancelled.fire()
    assert heard == ["kept"]


def test_a_callback_may_cancel_what_is_due_with_it() -> None:
    loop, heard, timers = Loop(), list[str](), list[Timer]()
    wheel = TimerWheel(loop)

    def first() -> None:
        heard.append("first")
        for timer in timers:
            timer.cancel()

    timers.append(wheel.call_later(1, first))
    timers.append(wheel.call_later(1, heard.append, "second"))
    timers.append(wheel.call_later(2, heard.append, "third"))
    run(loop, 103)
    assert heard == ["first"]


def test_a_callback_may_set_itself_again() -> None:
    loop, heard = Loop(), list[float]()
    wheel = TimerWheel(loop)

    def again() -> None:
        heard.append(loop.now)
        if len(heard) < 5:
            wheel.call_later(1, again)

    wheel.call_later(1, again)
    run(loop, 110)
    assert heard == [pytest.approx(101 + n, abs=5 * RESOLUTION) for n in range(5)]
    assert loop.waiting() == []


def test_a_callback_that_sets_something_for_at_once_does_not_keep_the_loop() -> None:
    loop, count = Loop(), 0
    wheel = TimerWheel(loop)

    def again() -> None:
        nonlocal count
        count += 1
        wheel.call_later(0, again)

    wheel.call_later(0, again)
    for turn in range(1, 11):
        loop.run_until(100)
        assert count == turn, "once in each turn of the loop"


def test_a_callback_that_fails_is_logged_and_the_others_have_their_turn() -> None:
    loop, heard = Loop(), list[str]()
    wheel = TimerWheel(loop)
    wheel.call_later(1, lambda: 1 / 0)
    wheel.call_later(1, heard.append, "with it")
    wheel.call_later(2, heard.append, "after it")
    with capture_logs() as logs:
        run(loop, 103)
    assert heard == ["with it", "after it"]
    assert [(line["event"], line["log_level"]) for line in logs] == [("a timer's callback failed", "error")]


def test_something_earlier_moves_the_loop_s_timer_forward_and_something_later_does_not() -> None:
    loop, heard = Loop(), list[str]()
    wheel = TimerWheel(loop)
    wheel.call_later(10, heard.append, "last")
    assert loop.waiting() == [110]
    wheel.call_later(20, heard.append, "never")
    assert loop.waiting() == [110]
    wheel.call_later(1, heard.append, "first")
    assert loop.waiting() == [101]
    run(loop, 101)
    assert loop.waiting() == [110]
    run(loop, 111)
    assert heard == ["first", "last"]


def test_the_loop_has_one_timer_however_many_there_are_and_none_where_nothing_is_due() -> None:
    loop = Loop()
    wheel = TimerWheel(loop)
    timers = [wheel.call_later(1 + n / 100, lambda: None) for n in range(10_000)]
    assert len(loop.waiting()) == 1
    for timer in timers[5000:]:
        timer.cancel()
    run(loop, 150)
    assert len(loop.waiting()) == 1
    run(loop, 202)
    assert loop.waiting() == []


def test_setting_and_cancelling_again_and_again_leaves_nothing_behind_once_it_was_due() -> None:
    loop = Loop()
    wheel = TimerWheel(loop)
    timer = wheel.call_later(45, lambda: None)
    for n in range(1000):
        loop.now = 100 + n / 100
        timer.cancel()
        timer = wheel.call_later(45, lambda: None)
    timer.cancel()
    run(loop, 160)
    assert (wheel._slots, wheel._numbers) == ({}, [])


def test_a_late_loop_makes_up_for_everything_in_order() -> None:
    loop, heard = Loop(), list[int]()
    wheel = TimerWheel(loop)
    for n in range(10):
        wheel.call_later(n + 1, heard.append, n)
    loop.run_until(150)
    assert heard == list(range(10))


def test_once_closed_nothing_comes_any_more_and_it_may_be_used_again() -> None:
    loop, heard = Loop(), list[str]()
    wheel = TimerWheel(loop)
    wheel.call_later(1, heard.append, "forgotten")
    wheel.close()
    wheel.close()
    assert loop.waiting() == []
    run(loop, 102)
    wheel.call_later(1, heard.append, "again")
    run(loop, 104)
    assert heard == ["again"]
