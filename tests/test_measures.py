from __future__ import annotations

import asyncio

import pytest

from gateway.runtime.looplag import INTERVAL, LoopLag
from gateway.runtime.measures import SECONDS, SIZES, Histogram


def test_each_size_is_counted_in_the_first_class_that_holds_it() -> None:
    found = Histogram((1, 5, 10))
    for size in (0, 1, 1.5, 5, 10, 10.1, 1000):
        found.observe(size)
    assert found.counts == [2, 2, 1, 2]
    assert found.buckets() == [("1", 2), ("5", 4), ("10", 5), ("+Inf", 7)]
    assert found.count == 7
    assert found.sum == pytest.approx(1027.6)


def test_several_of_one_size_are_counted_at_once() -> None:
    found = Histogram((1, 5))
    found.observe(2, times=3)
    assert (found.counts, found.sum) == ([0, 3, 0], 6)


@pytest.mark.parametrize("bounds", [SECONDS, SIZES])
def test_the_usual_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert sorted(set(bounds)) == list(bounds)


async def test_how_late_the_loop_was_is_what_it_slept_too_long() -> None:
    now, late = 100.0, iter([0.0, 0.3, 0.04])

    async def sleep(seconds: float) -> None:
        nonlocal now
        assert seconds == INTERVAL
        try:
            now += seconds + next(late)
        except StopIteration:
            raise asyncio.CancelledError from None

    lag = LoopLag(lambda: now, sleep)
    with pytest.raises(asyncio.CancelledError):
        await lag.run()
    assert lag.late.count == 3
    assert lag.late.sum == pytest.approx(0.34)
    assert dict(lag.late.buckets())["0.25"] == 2
