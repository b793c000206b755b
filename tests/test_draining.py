"""How the clients of a node that stops are divided: evenly, over time, and never for longer than there is."""

from __future__ import annotations

import itertools
import random

import pytest

from gateway.access.limits import Rate
from gateway.connections.draining import EVERY, Departures


@pytest.mark.parametrize("count", [0, 1, 74, 75])
def test_as_many_as_go_at_once_go_at_once(count: int) -> None:
    assert Departures(Rate(300, 1.0), 5).batches(count) == [(0.0, count)]


def test_more_go_at_the_rate_in_batches_of_a_quarter_of_a_second() -> None:
    batches = Departures(Rate(300, 1.0), 5, dice=lambda: 0.0).batches(900)
    assert [batch.size for batch in batches] == [75] * 12
    assert [batch.at for batch in batches] == pytest.approx([each * EVERY for each in range(12)])


def test_a_rate_a_minute_is_one() -> None:
    batches = Departures(Rate(60, 60.0), 60, dice=lambda: 0.0).batches(10)
    assert sum(batch.size for batch in batches) == 10
    assert batches[-1].at == pytest.approx(10 - EVERY)


def test_each_batch_has_a_moment_of_its_own_in_its_part_of_the_time() -> None:
    dice = random.Random(7).random
    for batches in (Departures(Rate(300, 1.0), 5, dice).batches(1500) for _ in range(50)):
        moments = [batch.at for batch in batches]
        assert moments[0] == 0.0  # nobody waits for nothing
        assert all(each * EVERY <= at < (each + 1) * EVERY for each, at in enumerate(moments))
        gaps = [after - before for before, after in itertools.pairwise(moments)]
        assert max(gaps) - min(gaps) > EVERY / 4


def test_who_would_take_too_long_goes_faster() -> None:
    batches = Departures(Rate(300, 1.0), 5, dice=lambda: 0.99).batches(30_001)
    assert sum(batch.size for batch in batches) == 30_001
    assert {batch.size for batch in batches} == {1500, 1501}
    assert max(batch.at for batch in batches) < 5


def test_clients_are_to_come_back_after_about_a_second() -> None:
    waits = [Departures(Rate(1, 1.0), 1, lambda dice=dice: dice).retry_after() for dice in (0.0, 0.5, 1.0)]  # type: ignore[misc]
    assert waits == [0.5, 1.0, 1.5]
