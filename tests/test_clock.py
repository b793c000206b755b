"""The time that presence goes by."""

import pytest

from gateway.presence.clock import ACCURACY, SteadyClock

MS = 1_000_000
"""Nanoseconds."""


class Machine:
    """A machine whose two clocks a test moves, and the clock that goes by them; times are milliseconds."""

    def __init__(self, wall: int = 10_000, monotonic: int = 5_000) -> None:
        self.wall = wall
        self.monotonic = monotonic
        self.clock = SteadyClock(lambda: self.wall * MS, lambda: self.monotonic * MS)

    def goes_on(self, ms: int) -> None:
        self.wall += ms
        self.monotonic += ms

    def ask(self, theirs: int, *, took: int = 0) -> None:
        """Ask another clock, which says `theirs` half-way between question and answer."""
        asked_at = self.clock.monotonic()
        self.goes_on(took)
        self.clock.set_by(theirs, asked_at)


def test_the_clock_never_goes_back_and_follows_forward() -> None:
    wall, monotonic = [10_000_000_000], [5_000_000_000]
    clock = SteadyClock(lambda: wall[0], lambda: monotonic[0])
    assert clock() == 10_000
    wall[0] -= 3_600_000_000_000
    monotonic[0] += 1_000_000_000
    assert clock() == 11_000
    wall[0] = 20_000_000_000
    assert clock() == 20_000


def test_the_system_s_clock_comes_and_goes_without_a_jump_where_it_was_set_back_and_forth() -> None:
    machine = Machine()
    machine.wall -= 1_000
    machine.monotonic += 10
    assert machine.clock() == 10_010
    machine.wall += 1_000
    machine.monotonic += 10
    assert machine.clock() == 10_020


def test_a_clock_that_another_sets_takes_over_its_time_and_goes_on_by_itself() -> None:
    machine = Machine()
    machine.ask(70_000)
    assert machine.clock() == 70_000
    machine.goes_on(250)
    assert machine.clock() == 70_250
    machine.wall += 5_000  # which it no longer goes by
    assert machine.clock() == 70_250


@pytest.mark.parametrize("theirs", [70_000, 3_000])
def test_another_clock_may_be_ahead_of_the_system_s_or_behind_it(theirs: int) -> None:
    machine = Machine()
    assert machine.clock() == 10_000
    machine.ask(theirs)
    assert machine.clock() == theirs


def test_the_other_s_time_is_that_of_half_the_round_trip() -> None:
    machine = Machine()
    machine.ask(70_000, took=60)
    assert machine.clock() == 70_030


def test_the_first_answer_counts_however_long_it_took_and_later_ones_where_the_clock_is_wrong_by_them() -> None:
    machine = Machine()
    machine.ask(70_000, took=3_000)
    assert machine.clock() == 71_500
    machine.ask(71_601, took=0)
    assert machine.clock() == 71_601


@pytest.mark.parametrize("by", [-1, 1])
def test_an_answer_that_took_long_tells_nothing_that_is_within_it_and_an_error_that_is_not(by: int) -> None:
    machine = Machine()
    machine.ask(70_000)
    machine.ask(70_200 + by * 200, took=400)  # when it is answered it is 70,400 there or 70,800, or 70,000 or 70,400
    assert machine.clock() == 70_400
    machine.ask(70_600 + by * 201, took=400)  # now it is never 70,800
    machine.goes_on(1_000)
    assert machine.clock() == 71_800 + by * 201


def test_a_difference_that_an_answer_may_have_by_itself_is_none() -> None:
    machine = Machine()
    machine.ask(70_000)
    machine.ask(70_000 + ACCURACY)
    assert machine.clock() == 70_000
    machine.ask(70_000 - ACCURACY)
    machine.goes_on(1)
    assert machine.clock() == 70_001
    machine.ask(70_001 + ACCURACY + 1)
    assert machine.clock() == 70_001 + ACCURACY + 1


def test_where_the_other_was_set_forward_the_clock_follows() -> None:
    machine = Machine()
    machine.ask(70_000)
    assert machine.clock() == 70_000
    machine.goes_on(1_000)
    machine.ask(100_000)
    assert machine.clock() == 100_000


def test_where_the_other_was_set_back_the_clock_stands_still_until_it_has_caught_up() -> None:
    machine = Machine()
    machine.ask(70_000)
    assert machine.clock() == 70_000
    machine.ask(69_000)
    assert machine.clock() == 70_000
    machine.goes_on(999)
    assert machine.clock() == 70_000
    machine.goes_on(2)
    assert machine.clock() == 70_001


def test_the_offset_is_how_far_the_system_s_clock_is_behind() -> None:
    machine = Machine()
    assert machine.clock.offset == 0
    machine.ask(10_700)
    assert machine.clock.offset == 700
    machine.goes_on(5_000)
    assert machine.clock.offset == 700
    machine.wall += 1_000
    assert machine.clock.offset == -300


def test_the_offset_of_a_system_s_clock_that_was_set_back_is_by_how_much() -> None:
    machine = Machine()
    machine.wall -= 2_000
    assert machine.clock.offset == 2_000


def test_a_clock_of_its_own_is_the_system_s() -> None:
    clock = SteadyClock()
    first, second = clock(), clock()
    assert first <= second
    assert abs(clock.offset) < 1_000
