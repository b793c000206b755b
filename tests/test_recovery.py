"""Sessions, offsets and events to users and rooms: what is kept, for how long, and for whom."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Clock
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.namespace import can_recover
from gateway.recovery.direct import OVERHEAD, Direct, Event, Target
from gateway.recovery.offsets import Mark, Offset, short
from gateway.recovery.sessions import OVERHEAD as SESSION
from gateway.recovery.sessions import SHARE, NoDirectory, Session, Sessions, rooms_of

HERE, THERE = "0123abcd", "deadbeef"
OWNER = ("tenant", "alice")
ALICE: Target = ("user", "tenant", "alice")
ROOM: Target = ("room", "/", "room")

numbers = st.integers(0, 2**63 - 1)
nodes = st.sampled_from([HERE, THERE])
offsets = st.builds(
    lambda node, log, mark, batch: Offset(node, log, mark, *batch),
    nodes,
    numbers,
    st.builds(Mark, numbers, nodes, numbers),
    st.one_of(st.just((0, 0)), st.tuples(st.integers(1, 2**63 - 1), numbers)),
)


@given(offsets)
def test_an_offset_is_read_as_it_was_written(offset: Offset) -> None:
    assert Offset.parse(str(offset)) == offset


@given(st.one_of(st.text(), st.from_regex(r"[0-9a-f]{8}\.[\w~-]*\.[\w-]*\.[\w-]*(\..*)?")))
def test_whatever_a_client_sends_is_an_offset_or_none(text: str) -> None:
    offset = Offset.parse(text)
    assert offset is None or offset.log < 2**63


@pytest.mark.parametrize("text", [None, 7, "", [], {}, "x" * 1000, "0123abcd.A.A.A", "0123abcd.____________.AA.AA"])
def test_what_is_no_offset_is_none(text: object) -> None:
    assert Offset.parse(text) is None


def test_a_node_is_named_by_the_end_of_its_name() -> None:
    assert short("a-host-with-a-long-name-0123abcd") == HERE


# Events to users and rooms


def said(
    sender: str, number: int, position: int | None, *targets: Target, text: bytes | None = b'["said"]', skip: str = ""
) -> Event:
    event = Event(targets or (ALICE,), text, sender, number, position)
    event.skipped = frozenset([skip])
    return event


def missed(direct: Direct, mark: Mark, *targets: Target, sid: str = "sid") -> list[tuple[str, int]] | None:
    found = direct.missed(targets or (ALICE,), mark, [sid])
    return None if found is None else [(event.sender, event.number) for event in found]


@pytest.fixture
def direct(clock: Clock) -> Direct:
    return Direct(clock, 1000, 10_000, 4_000)


def test_an_event_is_missed_whose_number_and_position_are_past_the_mark(direct: Direct) -> None:
    direct.add(said(THERE, 1, 10), 0)
    direct.add(said(HERE, 1, None), 0)
    direct.add(said(THERE, 2, 20), 0)
    # On its own node: by number for what the node said itself, by position for what others did.
    assert missed(direct, Mark(0, HERE, 0)) == [(THERE, 1), (THERE, 2), (HERE, 1)]
    assert missed(direct, Mark(10, HERE, 1)) == [(THERE, 2)]
    assert missed(direct, Mark(20, HERE, 0)) == [(HERE, 1)]
    # On another than the one whose mark it is: as soon as the position is known, by that.
    assert missed(direct, Mark(15, THERE, 2)) == [(HERE, 1)]
    direct.place(1, 15)
    assert missed(direct, Mark(15, THERE, 2)) == []
    assert missed(direct, Mark(10, THERE, 2)) == [(HERE, 1)]
    assert missed(direct, Mark(0, HERE, 0)) == [(THERE, 1), (HERE, 1), (THERE, 2)]


def test_events_are_those_of_the_targets_once_each_without_the_skipped(direct: Direct) -> None:
    direct.add(said(HERE, 1, 1, ALICE, ROOM), 0)
    direct.add(said(HERE, 2, 2, ROOM, skip="sid"), 0)
    direct.add(said(HERE, 3, 3, ("user", "tenant", "bob")), 0)
    assert missed(direct, Mark(0, HERE, 0), ALICE, ROOM) == [(HERE, 1)]
    assert missed(direct, Mark(0, HERE, 0), ROOM, sid="another") == [(HERE, 1), (HERE, 2)]


def test_what_json_cannot_hold_is_known_to_be_missing(direct: Direct) -> None:
    direct.add(said(HERE, 1, 1, text=None), 0)
    assert missed(direct, Mark(0, HERE, 0)) is None
    assert missed(direct, Mark(1, HERE, 1)) == []


def test_what_is_too_old_goes_and_whoever_was_told_of_it_misses_nothing(direct: Direct, clock: Clock) -> None:
    direct.add(said(HERE, 1, None), 0)
    direct.place(1, 7)
    direct.add(said(THERE, 1, 5), 0)
    clock.advance(ms=600)
    direct.add(said(HERE, 2, 8), 0)
    direct.forget(clock.advance(ms=600))
    assert missed(direct, Mark(4, HERE, 1)) is None
    assert missed(direct, Mark(5, HERE, 0)) is None
    assert missed(direct, Mark(5, HERE, 1)) == [(HERE, 2)]
    assert missed(direct, Mark(7, THERE, 1)) == [(HERE, 2)]
    assert missed(direct, Mark(0, HERE, 0), ROOM) == [], "of another target nothing is gone"
    direct.forget(clock.advance(s=3600))
    assert direct.size == 0
    assert missed(direct, Mark(5, HERE, 2)) == []


def test_one_target_costs_no_other_its_place(direct: Direct) -> None:
    direct.add(said(HERE, 1, 1, ROOM), 0)
    for number in range(2, 100):
        direct.add(said(HERE, number, number, text=b"x" * 1000), 0)
    assert direct.size <= 4_000 + OVERHEAD + 8
    assert missed(direct, Mark(1, HERE, 1)) is None
    assert missed(direct, Mark(97, HERE, 97)) == [(HERE, 98), (HERE, 99)]
    assert missed(direct, Mark(0, HERE, 0), ROOM) == [(HERE, 1)]


def test_what_never_gets_a_position_is_let_go_of_as_well(direct: Direct, clock: Clock) -> None:
    direct.add(said(HERE, 1, None), 0)
    direct.forget(clock.advance(s=3600))
    assert direct._unplaced == {}


def test_a_room_that_is_named_twice_is_one(direct: Direct, clock: Clock) -> None:
    direct.add(said(HERE, 1, 1, ROOM, ROOM), 0)
    direct.add(said(HERE, 2, 2, ROOM), 0)
    assert missed(direct, Mark(0, HERE, 0), ROOM) == [(HERE, 1), (HERE, 2)]
    direct.forget(clock.advance(s=3600))
    assert direct.size == 0


def test_too_much_in_all_is_let_go_of_oldest_first(direct: Direct) -> None:
    users: list[Target] = [("user", "tenant", f"user-{n}") for n in range(20)]
    for number, user in enumerate(users, 1):
        direct.add(said(HERE, number, number, user, text=b"x" * 1000), 0)
    assert direct.size <= 10_000
    assert missed(direct, Mark(0, HERE, 0), users[0]) is None
    assert missed(direct, Mark(0, HERE, 0), users[-1]) == [(HERE, 20)]
    assert missed(direct, Mark(1, HERE, 1), users[0]) == []
    direct.begin_anew()
    assert direct.size == 0


# Sessions


class Listed(NoDirectory):
    """A directory that keeps what it is told."""

    def __init__(self) -> None:
        self.sessions: dict[str, Any] = {}

    def put(self, session: Session) -> None:
        self.sessions[session.pid] = list(session.rooms)

    def drop(self, pid: str) -> None:
        del self.sessions[pid]


def a_session(pid: str = "pid", *rooms: str, owner: tuple[str, str] = OWNER) -> Session:
    return Session(pid, "/", owner, f"sid of {pid}", rooms=list(rooms))


@pytest.fixture
def directory() -> Listed:
    return Listed()


@pytest.fixture
def sessions(clock: Clock, directory: Listed) -> Sessions:
    return Sessions(clock, 1000, 3 * SESSION, directory)


def test_a_session_is_found_by_its_owner_alone_while_its_window_lasts(
    sessions: Sessions, directory: Listed, clock: Clock
) -> None:
    session = a_session()
    sessions.begin(session)
    assert sessions.find("pid", OWNER, "/") is session
    sessions.lose(session)
    assert not sessions.is_live(session)
    clock.advance(ms=1000)
    assert sessions.find("pid", OWNER, "/") is session
    for pid, owner, namespace in (
        ("another", OWNER, "/"),
        ("pid", ("tenant", "bob"), "/"),
        ("pid", ("another", "alice"), "/"),
        ("pid", OWNER, "/another"),
        (None, OWNER, "/"),
        (["pid"], OWNER, "/"),
    ):
        assert sessions.find(pid, owner, namespace) is None
    clock.advance(ms=1)
    assert sessions.find("pid", OWNER, "/") is None
    assert (len(sessions), sessions.size, directory.sessions) == (0, 0, {})


def test_what_ended_is_not_found(sessions: Sessions, directory: Listed) -> None:
    session = a_session()
    sessions.begin(session)
    sessions.end(session)
    assert sessions.find("pid", OWNER, "/") is None
    sessions.lose(session)  # too late
    assert sessions.find("pid", OWNER, "/") is None
    assert directory.sessions == {}


def test_a_newer_connection_s_session_is_left_alone_by_the_end_of_the_older(sessions: Sessions) -> None:
    older, newer = a_session(), a_session()
    sessions.begin(older)
    sessions.begin(newer)
    sessions.lose(older)
    sessions.end(older)
    assert sessions.find("pid", OWNER, "/") is newer
    assert sessions.is_live(newer)
    sessions.lose(newer)
    sessions.begin(a_session())
    assert (len(sessions), sessions.size) == (1, 0)


def test_the_sessions_lost_first_go_first_when_there_are_too_many(sessions: Sessions, directory: Listed) -> None:
    for n in range(5):
        session = a_session(str(n), owner=("tenant", str(n)))
        sessions.begin(session)
        sessions.lose(session)
    assert [n for n in range(5) if sessions.find(str(n), ("tenant", str(n)), "/")] == [2, 3, 4]
    large = a_session("large", "x" * 2 * SESSION)
    sessions.begin(large)
    sessions.lose(large)
    assert [*directory.sessions] == ["large"]


def test_who_comes_and_goes_costs_others_nothing_that_they_come_back_to(clock: Clock, directory: Listed) -> None:
    sessions = Sessions(clock, 1000, 2 * SHARE * SESSION, directory)
    bob = a_session("bob", owner=("tenant", "bob"))
    sessions.begin(bob)
    sessions.lose(bob)
    for n in range(10 * SHARE):
        session = a_session(str(n), *["x" * SESSION] * (n % 3 if n < 100 else 0))
        sessions.begin(session)
        sessions.lose(session)
        assert sessions.find(str(n), OWNER, "/") is session, "the last at least"
    assert sessions.find("bob", ("tenant", "bob"), "/") is bob
    assert [*directory.sessions] == ["bob", "158", "159"]
    sessions.begin(a_session("159"))
    sessions.forget(clock.advance(s=3600))
    assert (sessions.size, sessions._of, len(sessions)) == (0, {}, 1)


def test_rooms_are_told_of_while_the_connection_lives(sessions: Sessions, directory: Listed) -> None:
    session = a_session()
    sessions.begin(session)
    session.rooms = rooms_of({"b", 3, "a", ("no", "room"), None})
    sessions.change(session)
    assert directory.sessions == {"pid": [3, "a", "b"]}
    sessions.end(session)
    sessions.change(session)
    assert directory.sessions == {}


# Who is sent offsets


@pytest.mark.parametrize(
    ("headers", "recovers"),
    [
        ({"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0.0.0 Safari/537.36"}, True),
        ({"User-Agent": "node-XMLHttpRequest"}, True),
        ({"User-Agent": "node"}, True),
        ({"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}, True),
        ({}, False),
        ({"User-Agent": "Python/3.11 aiohttp/3.14.5"}, False),
        ({"User-Agent": "python-requests/2.32"}, False),
        ({"User-Agent": "websocket-client"}, False),
        ({"User-Agent": "Python/3.11 aiohttp/3.14.5", "Sec-WebSocket-Extensions": "permessage-deflate"}, False),
        ({"User-Agent": "okhttp/4.12"}, False),
    ],
)
def test_only_socket_io_client_is_sent_offsets(headers: dict[str, str], recovers: bool) -> None:  # noqa: FBT001
    assert can_recover(headers) is recovers
