"""What is encoded by hand is what the types encode."""

import msgspec
import pytest

from gateway import wire
from gateway.connections import encoded
from gateway.presence.model import Status, UserStatus

STATUSES = [
    UserStatus(tenant="acme", user_id='never "seen"'),
    UserStatus(tenant="acme", user_id="alice", status=Status.ONLINE, version=3, active_at=1_500, online_since=1_000),
    UserStatus(tenant="acme", user_id="bøb", status=Status.OFFLINE, version=4, active_at=2_500),
]


@pytest.mark.parametrize("status", STATUSES)
def test_what_is_encoded_by_hand_is_what_the_types_encode(status: UserStatus) -> None:
    for _ in range(2):  # made, and kept
        assert encoded.status(status) == wire.encode(wire.user_status(status))
        assert encoded.status_at(status, 9_000) == wire.encode(wire.user_status_at(status, 9_000))


def test_many_statuses_are_encoded_as_their_type_is() -> None:
    expected = wire.UserStatuses(
        statuses=[wire.user_status(status) for status in STATUSES], timestamp=wire.timestamp(5)
    )
    assert encoded.statuses_at(STATUSES, 5) == wire.encode(expected)
    assert encoded.statuses_at([], 5) == wire.encode(wire.UserStatuses(statuses=[], timestamp=wire.timestamp(5)))


def test_a_status_that_changes_is_encoded_anew() -> None:
    before = STATUSES[1]
    assert b'"version":3' in encoded.status(before)
    assert b'"version":4' in encoded.status(msgspec.structs.replace(before, version=4))


@pytest.mark.parametrize(("now", "active_at"), [(9_000, 9_000), (9_000, 8_001), (9_001, 9_000), (9_001, 9_001)])
def test_a_heartbeat_is_acknowledged_as_its_type_is(now: int, active_at: int) -> None:
    expected = wire.HeartbeatAck(timestamp=wire.timestamp(now), last_active=wire.timestamp(active_at))
    for _ in range(2):  # made, and kept
        assert encoded.heartbeat_ack(now, active_at) == wire.encode(expected)
