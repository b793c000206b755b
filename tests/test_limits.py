import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.buckets import TokenBucket
from gateway.access.limits import KeyedBuckets, Rate


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


def drain(buckets: KeyedBuckets[str], key: str, now: float) -> None:
    while not buckets.take(key, now):
        pass


def test_a_flood_of_keys_gives_nobody_a_full_bucket() -> None:
    buckets: KeyedBuckets[str] = KeyedBuckets(Rate(60, 60), capacity=1000)
    for key in ("alice", "bob"):
        drain(buckets, key, 0)
    now = 0.0
    for n in range(20_000):
        now = n / 1000  # each is full again after a second
        buckets.take(f"flood {n}", now)
        assert len(buckets) <= 1000
    assert buckets.take("alice", now) == 0  # what has come back in 20 seconds
    drain(buckets, "bob", now)
    assert buckets.of("bob", now).full_at == pytest.approx(now + 60, abs=1)
    assert buckets.of("alice", now).full_at == pytest.approx(now + 60 - 19, abs=1)


def test_where_none_is_full_the_one_goes_that_is_nearest_to_it() -> None:
    buckets: KeyedBuckets[str] = KeyedBuckets(Rate(60, 60), capacity=1000)
    drain(buckets, "alice", 0)
    for n in range(5000):  # all in one moment
        buckets.take(f"flood {n}", 0)
    assert buckets.take("alice", 0) == 1
    assert len(buckets) == 1000


def test_the_keys_that_are_full_again_are_the_first_to_be_forgotten() -> None:
    buckets: KeyedBuckets[str] = KeyedBuckets(Rate(2, 10), capacity=3)
    drain(buckets, "alice", 0)
    buckets.take("bob", 0.5)
    buckets.take("carol", 4)
    buckets.take("dave", 6)  # when bob's has been full for half a second
    assert buckets.take("alice", 6) == 0
    assert buckets.take("alice", 6) == pytest.approx(4)
    assert buckets.take("carol", 6) == 0
    assert buckets.take("carol", 6) == pytest.approx(3)
    assert len(buckets) == 3


def test_a_key_that_is_to_begin_anew_has_a_full_bucket_and_takes_no_further_room() -> None:
    buckets: KeyedBuckets[str] = KeyedBuckets(Rate(1, 10), capacity=2)
    buckets.forget("alice")
    for _ in range(10):
        assert [buckets.take("alice", 0), buckets.take("alice", 0)] == [0, 10]
        buckets.forget("alice")
    assert len(buckets) == len(buckets._queue) == 1


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3), st.booleans()), max_size=200))
def test_what_is_let_go_of_is_what_says_least(steps: list[tuple[int, int, bool]]) -> None:
    buckets: KeyedBuckets[str] = KeyedBuckets(Rate(3, 30), capacity=5)
    now = 0.0
    for user, wait, forgotten in steps:
        now += wait
        before = {key: bucket.full_at for key, bucket in buckets._buckets.items()}
        buckets.forget(f"user-{user}") if forgotten else buckets.take(f"user-{user}", now)
        gone = before.keys() - buckets._buckets.keys()
        left = [at for key, at in before.items() if key not in gone and key != f"user-{user}"]
        assert len(buckets) == len(buckets._queue) <= 5
        for key in gone:
            assert before[key] <= max(now, *left)


def test_past_the_capacity_the_key_unused_for_longest_is_forgotten() -> None:
    buckets: KeyedBuckets[str] = KeyedBuckets(Rate(1, 10), capacity=2)
    buckets.take("alice", 0)
    buckets.take("bob", 0)
    assert buckets.take("alice", 1) == 9  # used again, so bob is the one
    buckets.take("carol", 1)
    assert buckets.take("alice", 1) == 9
    assert buckets.take("bob", 1) == 0
