"""The rules of what is promised besides who is there: fed with broken traces, they find each violation."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from chaos.node import may_see
from chaos.promises import (
    QUEUED,
    Sent,
    disorder,
    exported,
    history,
    revoked,
    sightings,
    statuses,
    undelivered,
    unhidden,
    unwatched,
    without_own,
)
from chaos.run import SCENARIOS, Plan
from chaos.test_trace import TIMING, WALL, heard, killed, rules, told, up
from chaos.trace import Answer, Chose, Left, Lost, Notified, Record, Rule, Watching
from chaos.truth import Facts, Harm, Impairment, Truth, sessions

NOON = "2026-01-31T12:00"
OWNERS = {"a/0": "a", "a/1": "a", "m/0": "m", "w": "watcher"}


def facts(records: Sequence[Record], *impairments: Impairment, skewed: bool = False) -> Facts:
    watches = {"w": frozenset({"b"})}
    return Facts(TIMING, sessions(records, OWNERS), impairments, WALL, skewed, frozenset({"m"}), watches)


def chose(at: float, status: str, *, sure: bool = True) -> Chose:
    return Chose(at, "m/0", status, at - 50, sure)


def truth(status: str) -> Truth:
    return Truth(60_000, {}, {"m": (9, status)})


# Watch lists


def test_a_client_that_hears_of_one_it_does_not_watch() -> None:
    event = heard(5000, 2, "online")
    assert rules(unwatched(facts([]), [up(0), Watching(100, "w"), event])) == [Rule.UNWATCHED]
    assert rules(unwatched(facts([]), [up(0), event, Watching(6000, "w")])) == []
    assert rules(unwatched(facts([]), [up(0), Watching(100, "w"), up(4000), event])) == []
    assert rules(unwatched(facts([]), [up(0), Watching(100, "w"), heard(5000, 2, "online", user="b")])) == []


# Visibility rules


SHY = "a-shy"


@pytest.mark.parametrize(
    "record",
    [
        heard(5000, 2, "online", user=SHY),
        heard(5000, 0, "offline", user=SHY, was="online"),
        told(5000, ("b", 3, "online"), (SHY, 2, "online")),
        told(5000, (SHY, 2, "offline")),
        Answer(5000, "w", [(SHY, 0, "offline")], unknown=["b"]),  # of whom more is said: when they were last seen
        told(5000, ("b", 3, "online"), (SHY, 2, "online"), whole=True),
        Answer(5000, "w", [("b", 3, "online")], whole=True, count=2),
    ],
    ids=lambda record: type(record).__name__,
)
def test_whoever_is_told_of_one_whom_a_rule_hides(record: Record) -> None:
    def found(viewer: str) -> list[Rule]:
        return rules(unhidden([record], {"w": viewer}, may_see))

    assert found("w-stranger") == [Rule.HIDDEN]
    counted = isinstance(record, Answer) and record.count is not None
    assert found("w") == ([Rule.HIDDEN] if counted else [])  # who may see them, is to be told


@pytest.mark.parametrize(
    "record",
    [
        Answer(5000, "w", [(SHY, 0, "offline"), ("b", 3, "online")], unknown=[SHY]),
        Answer(5000, "w", [("b", 3, "online")], whole=True, count=1),
        heard(5000, 2, "online", user="b-stranger"),
        heard(5000, 2, "online", user="b"),
    ],
    ids=lambda record: type(record).__name__,
)
def test_one_whom_a_rule_hides_is_as_one_never_seen(record: Record) -> None:
    assert rules(unhidden([record], {"w": "w-stranger"}, may_see)) == []


def test_a_plan_without_a_rule_hides_nobody() -> None:
    ruled, free = (replace(Plan.make(SCENARIOS["kill"], 1, 0), ruled=wanted) for wanted in (True, False))
    clients = [each for each in ruled.clients if each.door == "native"]  # others hear of nobody but in channels
    shy, strangers = ([each for each in clients if each.user.endswith(kind)] for kind in ("-shy", "-stranger"))
    assert {each.user.split("-")[0] for each in shy} == {"guest", "bound", "resident", "mood", "watcher", "outcast"}
    assert {each.user.split("-")[0] for each in strangers} == {"guest", "bound", "resident", "mood", "watcher"}
    for stranger in strangers:
        assert not {each.user for each in shy} & ruled.watches[stranger.name]
        assert stranger.name not in free.watches or {each.user for each in shy} & free.watches[stranger.name]
    assert all(free.may_see("a-stranger", each.user) for each in free.clients)


# Statuses set by hand


@pytest.mark.parametrize(("chosen", "seen"), [("busy", "busy"), ("invisible", "offline"), ("online", "online")])
def test_the_status_that_was_set_last_is_the_one_in_the_end(chosen: str, seen: str) -> None:
    records = [chose(1000, "away"), chose(20_000, chosen)]
    assert rules(statuses(records, OWNERS, truth(seen))) == []
    assert rules(statuses(records, OWNERS, truth("away"))) == [Rule.FORGOTTEN]


def test_what_was_never_answered_may_be_so_or_not() -> None:
    records = [chose(20_000, "busy"), chose(21_000, "dnd", sure=False)]
    assert [rules(statuses(records, OWNERS, truth(seen))) for seen in ("busy", "dnd", "away")] == [
        [],
        [],
        [Rule.FORGOTTEN],
    ]
    late = [chose(1000, "dnd", sure=False), chose(20_000, "busy")]
    assert rules(statuses(late, OWNERS, truth("dnd"))) == [Rule.FORGOTTEN]
    assert rules(statuses(late[:1], OWNERS, truth("away"))) == []


def test_one_who_is_invisible_is_not_seen() -> None:
    records = [chose(1000, "invisible"), heard(5000, 3, "busy", user="m"), chose(9000, "busy")]
    assert rules(sightings(facts(records), records, OWNERS)) == [Rule.SEEN]
    assert rules(sightings(facts(records, skewed=True), records, OWNERS)) == []
    for harmless in (
        [records[0], heard(5000, 3, "offline", user="m")],
        [records[0], heard(9100, 3, "busy", user="m"), records[2]],
        [chose(900, "busy", sure=False), *records],
        [heard(900, 3, "busy", user="m"), records[0]],
        records[1:],
    ):
        assert rules(sightings(facts(harmless), harmless, OWNERS)) == []


def test_what_the_moody_are_told_of_themselves_is_no_part_of_what_others_see() -> None:
    records = [
        heard(1000, 2, "offline", user="m", client="m/0"),
        heard(1000, 2, "offline", client="m/0"),
        heard(1000, 2, "offline"),
        told(2000, ("m", 2, "online"), ("a", 1, "online"), client="m/0", whole=True),
    ]
    assert list(without_own(records, OWNERS, {"m"})) == [
        *records[1:3],
        told(2000, ("a", 1, "online"), client="m/0", whole=True),
    ]


# Sessions


@pytest.mark.parametrize(
    ("kept", "there", "sound"),
    [
        ([(f"{NOON}:05Z", None), (f"{NOON}:00Z", f"{NOON}:05Z")], True, True),
        (
            [
                (f"{NOON}:05Z", f"{NOON}:06Z"),
                (f"{NOON}:00Z", f"{NOON}:04Z"),
            ],
            False,
            True,
        ),
        ([], False, True),
        ([(f"{NOON}:05Z", f"{NOON}:06Z")], True, False),
        ([(f"{NOON}:05Z", None)], False, False),
        ([], True, False),
        ([(f"{NOON}:05Z", None), (f"{NOON}:00Z", f"{NOON}:06Z")], True, False),
    ],
)
def test_sessions_are_when_a_user_was_there(kept: list[tuple[str, str | None]], *, there: bool, sound: bool) -> None:
    found = rules(history(Truth(60_000, {}, {}, {}, {"a": kept}, {"a": there})))
    assert found == ([] if sound else [Rule.HISTORY])


# Revoked tokens, and exports


def test_who_is_let_in_by_a_revoked_token() -> None:
    def found(*records: Record, there: bool = False, away: Sequence[Impairment] = ()) -> list[Rule]:
        until = Truth(60_000, {}, {}, {}, {}, {"a": there})
        return rules(revoked(facts(records, *away), {"a": 5000}, until))

    assert found(up(0, "a/0"), Lost(6000, "a/0", "")) == []
    assert found(up(0, "a/0"), Lost(9000, "a/0", "")) == [Rule.REVOKED]
    assert found(up(0, "a/0"), Lost(5100, "a/0", ""), up(9000, "a/0"), Lost(9100, "a/0", "")) == [Rule.REVOKED]
    assert found(up(0, "a/0"), Lost(9000, "a/0", ""), away=[killed(4000, 8000)]) == []
    assert found(there=True) == [Rule.REVOKED]


def test_what_the_store_lost_a_node_that_starts_knows_when_it_is_given_back() -> None:
    def found(*impairments: Impairment, at: float) -> list[Rule]:
        records = [up(at, "a/0"), Lost(at + 300, "a/0", "")]
        until = Truth(60_000, {}, {}, {}, {}, {"a": False})
        return rules(revoked(facts(records, *impairments), {"a": 5000}, until, [loss]))

    loss = Impairment(Harm.STORE_AWAY, 20_000, 24_000)
    assert found(loss, killed(19_000, 23_000), at=24_500) == []
    assert found(loss, killed(19_000, 23_000), at=30_000) == [Rule.REVOKED]
    assert found(loss, killed(19_000, 23_000), at=15_000) == [Rule.REVOKED]
    assert found(loss, killed(10_000, 12_000), at=24_500) == [Rule.REVOKED]
    assert found(loss, at=24_500) == [Rule.REVOKED]
    loss = Impairment(Harm.STORE_AWAY, 1000, 3000)
    assert found(loss, killed(6000, 8000), at=12_500) == [Rule.REVOKED]


@pytest.mark.parametrize(
    ("rows", "sound"),
    [
        ([("m", 1), ("a", 7), ("m", 2)], True),
        ([("m", 1), ("m", 1), ("m", 2)], False),
        ([("m", 2), ("m", 1)], False),
        ([("m", 2)], False),
        ([("m", 1)], False),
    ],
)
def test_an_export_has_each_change_once_in_order(rows: list[tuple[str, int]], *, sound: bool) -> None:
    found = rules(exported(rows, Truth(60_000, {}, {"m": (2, "online")})))
    assert found == ([] if sound else [Rule.EXPORT])


# Notifications


def lost(records: Sequence[Record], sent: Sent, *impairments: Impairment, lost_before: float = 0.0) -> list[Rule]:
    return rules(undelivered(facts(records, *impairments), records, OWNERS, [sent], lost_before=lost_before))


def test_what_was_queued_comes_to_one_who_is_there_in_the_end() -> None:
    sent = Sent(5000, "a", 7, QUEUED, 0)
    assert lost([up(9000, "a/0")], sent) == [Rule.UNDELIVERED]
    assert lost([up(9000, "a/0"), Notified(9010, "a/0", 7)], sent) == []
    assert lost([up(9000, "a/0"), Notified(9010, "a/0", 8)], sent) == [Rule.UNDELIVERED]
    assert lost([up(9000, "a/0"), Left(9500, "a/0")], sent) == []
    assert lost([up(9000, "a/0")], sent, lost_before=5100) == []


def test_what_was_delivered_came_to_one_who_was_there_all_the_time() -> None:
    sent = Sent(5000, "a", 7, "realtime", 0)
    assert lost([up(0, "a/0")], sent) == [Rule.UNDELIVERED]
    assert lost([up(0, "a/0"), Notified(5001, "a/0", 7)], sent) == []
    assert lost([up(0, "a/0"), up(0, "a/1", 1), Notified(5001, "a/1", 7)], sent) == []
    assert lost([up(0, "a/0"), Left(5100, "a/0")], sent) == []
    assert lost([up(4900, "a/0")], sent) == []
    assert lost([up(0, "a/0")], sent, killed(6000)) == []


def test_what_waited_comes_in_its_order_to_each_connection() -> None:
    sent = [Sent(1000, "a", 1, QUEUED, 0), Sent(1100, "a", 2, QUEUED, 0), Sent(5000, "a", 3, "realtime", 0)]
    first, second, third = (Notified(9000, "a/0", number) for number in (1, 2, 3))
    assert rules(disorder([up(8000, "a/0"), second, first], sent)) == [Rule.DISORDER]
    assert rules(disorder([up(8000, "a/0"), first, second, third], sent)) == []
    assert rules(disorder([up(8000, "a/0"), first, second, up(9500, "a/0"), first, second], sent)) == []
