import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.buckets import TokenBucket
from gateway.limits import KeyedBuckets, Rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [("100/s", Rate(100, 1)), ("60/min", Rate(60, 60)), ("1000/h", Rate(1000, 3600)), (" 1/s ", Rate(1, 1))],
)
def test_a_rate_is_read(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate


@pytest.mark.parametrize("text", ["", "100", "0/s", "-1/s", "1.5/s", "100/ms", "100 / s", "100/s/s", "٣/s", "1e3/s"])
def test_what_is_no_rate_is_refused_with_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="a rate reads 100/s, 60/min or 1000/h"):
        Rate.parse(text)


def test_a_burst_of_the_count_goes_through_and_then_the_rate() -> None:
    bucket = TokenBucket(Rate(2, 10), now=100)
    assert [bucket.take(100) for _ in range(4)] == [0, 0, 5, 5]
    assert bucket.take(104) == pytest.approx(1)
    assert [bucket.take(105), bucket.take(105)] == [0, 5]


def test_a_bucket_never_holds_more_than_the_count() -> None:
    bucket = TokenBucket(Rate(2, 10), now=0)
    assert [bucket.take(1_000_000) for _ in range(3)] == [0, 0, 5]


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    bucket = TokenBucket(Rate(1, 10), now=100)
    assert bucket.take(100) == 0
    assert bucket.take(50) == 10
    assert bucket.take(100) == 10
    assert bucket.take(110) == 0


@given(st.integers(1, 1000), st.sampled_from([1.0, 60.0, 3600.0]), st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_no_more_than_the_burst_and_the_rate_get_through(count: int, seconds: float, waits: list[float]) -> None:
    bucket, now, taken = TokenBucket(Rate(count, seconds), 0), 0.0, 0
    for wait in waits:
        now += wait
        taken += sum(bucket.take(now) == 0 for _ in range(20))
    assert taken <= count + now * count / seconds + 0.001


def test_each_key_has_its_own_bucket() -> None:
    buckets: KeyedBuckets[str] = KeyedBuckets(Rate(1, 10))
    assert [buckets.take(key, 0) for key in ("alice", "bob", "alice")] == [0, 0, 10]


def test_past_the_capacity_the_key_unused_for_longest_is_forgotten() -> None:
    buckets: KeyedBuckets[str] = KeyedBuckets(Rate(1, 10), capacity=2)
    buckets.take("alice", 0)
    buckets.take("bob", 0)
    assert buckets.take("alice", 1) == 9  # used again, so bob is the one
    buckets.take("carol", 1)
    assert buckets.take("alice", 1) == 9
    assert buckets.take("bob", 1) == 0
