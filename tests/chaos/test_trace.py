"""The checker itself: fed with broken traces, it finds each violation; fed with sound ones, none."""

from collections.abc import Iterable, Sequence

import msgspec
import pytest
from receivers import Call, Receiver

from chaos.trace import (
    Abandoned,
    Answer,
    Heard,
    Left,
    Lost,
    Record,
    Rule,
    Up,
    Violation,
    divergences,
    event_of,
    pictures,
)
from chaos.truth import PRECISION, Facts, Harm, Impairment, Session, Timing, Truth, agreement, leaves, missed, sessions

WALL = 1_000_000_000.0
TIMING = Timing(lease=3000, grace=1500)
OWNERS = {"a/0": "a", "a/1": "a", "b/0": "b", "w": "watcher", "x": "watcher"}
LONG = 60_000.0


def up(at: float, client: str = "w", node: int = 0) -> Up:
    return Up(at, client, node, resumed=False)


def heard(at: float, version: int, status: str, *, client: str = "w", user: str = "a", was: str = "") -> Heard:
    was = was or ("offline" if status == "online" else "online")
    return Heard(at, client, event_of(was, status) or "user-online", user, version, status, WALL + at)


def told(at: float, *users: tuple[str, int, str], client: str = "w", whole: bool = False) -> Answer:
    return Answer(at, client, list(users), whole)


def rules(violations: Iterable[Violation]) -> list[Rule]:
    return [violation.rule for violation in violations]


def drawn(*records: Record) -> list[Rule]:
    return rules(violation for picture in pictures(records).values() for violation in picture.violations)


def facts(records: Sequence[Record], *impairments: Impairment, skewed: bool = False) -> Facts:
    return Facts(TIMING, sessions(records, OWNERS), impairments, WALL, skewed)


def killed(at: float, end: float = float("inf"), node: int = 0) -> Impairment:
    return Impairment(Harm.KILLED, at, end, node)


# One client's trace


def test_a_sound_trace() -> None:
    trace = [
        up(0),
        told(1, ("a", 4, "offline")),
        told(2, ("b", 1, "online"), whole=True),
        heard(3, 5, "online"),
        heard(4, 8, "offline"),
        told(5, ("a", 8, "offline"), ("b", 1, "online")),
        heard(6, 9, "online"),
        heard(7, 10, "away", was="online"),
        heard(8, 11, "offline", was="away"),
    ]
    assert drawn(*trace) == []


def test_an_event_twice() -> None:
    assert drawn(up(0), heard(1, 5, "online"), heard(2, 5, "online")) == [Rule.DUPLICATE]


def test_an_event_after_the_answer_that_knew_it() -> None:
    assert drawn(up(0), told(1, ("a", 5, "online")), heard(2, 5, "online")) == [Rule.DUPLICATE]


def test_an_event_twice_over_a_reconnection() -> None:
    assert drawn(up(0), heard(1, 5, "online"), Lost(2, "w", ""), up(3, node=1), heard(4, 5, "online")) == [
        Rule.DUPLICATE
    ]


def test_a_version_goes_back() -> None:
    assert drawn(up(0), heard(1, 5, "online"), heard(2, 4, "offline")) == [Rule.BACKWARDS]


def test_a_version_goes_back_over_a_reconnection() -> None:
    assert drawn(up(0), heard(1, 5, "online"), up(2), told(3, ("a", 4, "offline"))) == [Rule.BACKWARDS]


def test_a_node_that_is_blind_may_tell_what_was_before() -> None:
    trace = [up(0), heard(1, 5, "online"), up(2, node=1), told(3, ("a", 4, "offline")), heard(4, 5, "online")]
    seen = pictures(trace, lambda node, at: node == 1 and at == 2)["w"]
    assert seen.violations == []
    seen.take(heard(5, 5, "online"))
    assert rules(seen.violations) == [Rule.DUPLICATE]


def test_to_one_who_may_know_nothing_it_is_no_repetition_that_a_user_is_as_one_never_seen() -> None:
    trace = [up(0), heard(1, 5, "online"), up(2, node=1), heard(3, 0, "offline")]
    seen = pictures(trace, lambda node, _at: node == 1)["w"]
    assert seen.violations == []
    seen.take(heard(4, 0, "offline"))
    assert rules(seen.violations) == [Rule.DUPLICATE]


def test_a_node_is_blind_until_it_has_recovered_from_all() -> None:
    outage, stop = Impairment(Harm.STORE_AWAY, 1000, 5000), Impairment(Harm.STOPPED, 4000, 9000, 0)
    seen = facts([], outage, stop)
    assert [seen.blind(0, at) for at in (500, 1500, 9500, 11_500)] == [False, True, True, False]
    assert [seen.blind(1, at) for at in (500, 1500, 9500)] == [False, True, False]
    assert not facts([], stop).blind(0, 9500)


@pytest.mark.parametrize("status", ["online", "offline"])
def test_the_same_event_in_a_row(status: str) -> None:
    assert drawn(up(0), heard(1, 5, status), heard(2, 7, status)) == [Rule.ALTERNATION]


def test_the_same_event_in_a_row_is_right_where_a_reconnection_was_between() -> None:
    assert drawn(up(0), heard(1, 5, "online"), up(2), heard(3, 7, "online")) == []


def test_a_wrong_event_for_a_change() -> None:
    assert drawn(up(0), told(1, ("a", 4, "away")), heard(2, 5, "online")) == [Rule.ALTERNATION]


def test_an_online_event_that_says_offline() -> None:
    wrong = Heard(1, "w", "user-online", "a", 5, "offline", WALL)
    assert drawn(up(0), wrong) == [Rule.ALTERNATION]


def test_an_answer_that_knows_more_than_was_heard() -> None:
    assert drawn(up(0), told(1, ("a", 4, "offline")), told(2, ("a", 5, "online"))) == [Rule.AHEAD]


def test_an_answer_that_knows_of_a_net_effect_of_nothing() -> None:
    assert drawn(up(0), told(1, ("a", 4, "offline")), told(2, ("a", 6, "offline"))) == []


def test_a_list_that_lacks_someone() -> None:
    assert drawn(up(0), told(1, ("a", 5, "online")), told(2, whole=True)) == [Rule.AHEAD]
    assert drawn(up(0), told(1, ("a", 5, "online")), told(2, whole=False)) == []


def test_one_version_with_two_meanings() -> None:
    assert rules(divergences([heard(1, 5, "online"), heard(2, 5, "offline", client="x")])) == [Rule.DIVERGENT]
    assert rules(divergences([heard(1, 5, "online"), told(2, ("a", 5, "offline"), client="x")])) == [Rule.DIVERGENT]
    assert rules(divergences([heard(1, 5, "online"), told(2, ("a", 5, "online"), client="x")])) == []


# Who was there


def false_offlines(trace: Sequence[Record], at: float, *impairments: Impairment) -> list[Rule]:
    """Whether an offline of user a that was committed and heard then would be false."""
    trace = [*trace, up(0, "w", 2), heard(at, 2, "offline")]
    return rules(facts(trace, *impairments).false_offlines(trace))


def test_an_offline_of_one_who_is_there() -> None:
    assert false_offlines([up(0, "a/0")], 5000) == [Rule.FALSE_OFFLINE]


def test_an_offline_is_told_once_for_all_who_heard_it() -> None:
    trace = [up(0, "a/0"), heard(1000, 2, "offline"), heard(1001, 2, "offline", client="x")]
    assert rules(facts(trace).false_offlines(trace)) == [Rule.FALSE_OFFLINE]


@pytest.mark.parametrize(("after", "false"), [(1000, True), (1600, False)])
def test_an_offline_of_one_who_was_lost(after: float, false: bool) -> None:  # noqa: FBT001
    assert bool(false_offlines([up(0, "a/0"), Lost(5000, "a/0", "")], 5000 + after + PRECISION)) is false


def test_an_offline_after_a_goodbye() -> None:
    assert false_offlines([up(0, "a/0"), Left(5000, "a/0")], 5005) == []


def test_an_offline_after_a_goodbye_soon_after_a_loss() -> None:
    trace = [up(0, "a/0"), Lost(5000, "a/0", ""), up(5100, "a/0"), Left(5500, "a/0")]
    assert false_offlines(trace, 5505) == []
    assert false_offlines(trace, 5300) == [Rule.FALSE_OFFLINE]


def test_an_offline_after_a_goodbye_of_one_who_was_lost_and_not_greeted_yet_when_back() -> None:
    trace = [up(0, "a/0"), Lost(5000, "a/0", ""), Abandoned(5500, "a/0", 1, 5100)]
    assert false_offlines(trace, 5700) == []
    assert false_offlines(trace, 5300) == [Rule.FALSE_OFFLINE]


def test_an_offline_after_a_goodbye_to_a_node_that_was_away() -> None:
    away = Impairment(Harm.STOPPED, 4000, 6000, 0)
    trace = [up(0, "a/0"), up(1, "a/1", 1), Left(5000, "a/0"), Lost(5500, "a/1", "")]
    assert false_offlines(trace, 6200, away) == []
    assert false_offlines(trace, 6200) == [Rule.FALSE_OFFLINE]


def test_an_offline_after_a_goodbye_to_a_node_that_is_far_from_the_store() -> None:
    far = Impairment(Harm.SLOWED, 4000, 6000, 0)
    trace = [up(0, "a/0"), up(1, "a/1", 1), Left(5000, "a/0"), Lost(5500, "a/1", "")]
    assert false_offlines(trace, 5700, far) == []
    assert false_offlines(trace, 5300, far) == [Rule.FALSE_OFFLINE]  # while the other connection lived
    trace = [up(0, "a/0"), up(1, "a/1", 1), Left(5000, "a/0"), Lost(6500, "a/1", "")]
    assert false_offlines(trace, 6700, far) == [Rule.FALSE_OFFLINE]  # it was the last to go, by far


def test_an_offline_after_a_goodbye_of_one_who_has_another_tab() -> None:
    assert false_offlines([up(0, "a/0"), up(1, "a/1"), Left(5000, "a/0")], 5005) == [Rule.FALSE_OFFLINE]


def test_an_offline_of_one_whose_connections_end_at_once_one_by_a_goodbye() -> None:
    for gone in (4999, 5001):
        trace = [up(0, "a/0"), up(1, "a/1", 1), Left(5000, "a/0"), Lost(gone, "a/1", "")]
        assert false_offlines(trace, 5200) == []
    trace = [up(0, "a/0"), up(1, "a/1", 1), Left(5000, "a/0"), Lost(5500, "a/1", "")]
    assert false_offlines(trace, 5700) == [Rule.FALSE_OFFLINE]


def test_an_offline_of_one_who_came_back_within_the_grace() -> None:
    trace = [up(0, "a/0"), Lost(5000, "a/0", ""), up(6000, "a/0")]
    assert false_offlines(trace, 6600) == [Rule.FALSE_OFFLINE]


def test_an_offline_of_one_who_came_back_too_late() -> None:
    trace = [up(0, "a/0"), Lost(5000, "a/0", ""), up(7000, "a/0")]
    assert false_offlines(trace, 6600) == []
    assert false_offlines(trace, 7500) == [Rule.FALSE_OFFLINE]


@pytest.mark.parametrize(("after", "false"), [(3000, True), (4600, False)])
def test_an_offline_of_one_whose_node_was_killed(after: float, false: bool) -> None:  # noqa: FBT001
    trace = [up(0, "a/0"), Lost(5001, "a/0", "transport close")]
    assert bool(false_offlines(trace, 5000 + after, killed(5000))) is false


def test_an_offline_of_one_who_went_on_at_another_node_after_a_kill() -> None:
    trace = [up(0, "a/0"), Lost(5001, "a/0", "transport close"), up(5200, "a/0", node=1)]
    assert false_offlines(trace, 9600, killed(5000)) == [Rule.FALSE_OFFLINE]


@pytest.mark.parametrize("harm", [Harm.STOPPED, Harm.CUT_OFF])
def test_an_offline_of_one_whose_node_was_away(harm: Harm) -> None:
    away = Impairment(harm, 5000, 12_000, 0)
    assert false_offlines([up(0, "a/0")], 7000, away) == [Rule.FALSE_OFFLINE]
    assert false_offlines([up(0, "a/0")], 9600, away) == []
    assert false_offlines([up(0, "a/0")], 15_000, away) == [Rule.FALSE_OFFLINE]


def test_an_offline_after_a_goodbye_of_one_whose_other_node_was_away() -> None:
    away = Impairment(Harm.CUT_OFF, 5000, 15_000, 0)
    trace = [up(0, "a/0"), up(1, "a/1", 1), Left(8000, "a/1")]  # the lease ran out then, or up to 1 s before
    assert false_offlines(trace, 8005, away) == []
    assert false_offlines([up(0, "a/0"), up(1, "a/1", 1), Lost(8000, "a/1", "")], 8500, away) == [Rule.FALSE_OFFLINE]
    assert false_offlines([up(0, "a/0"), up(1, "a/1", 1), Left(6000, "a/1")], 6500, away) == [Rule.FALSE_OFFLINE]


def test_an_offline_of_one_whose_node_was_away_shortly() -> None:
    assert false_offlines([up(0, "a/0")], 7000, Impairment(Harm.STOPPED, 5000, 7000, 0)) == [Rule.FALSE_OFFLINE]


def test_an_offline_of_one_who_came_to_a_node_that_was_cut_off() -> None:
    trace = [up(0, "a/0", 1), Lost(5000, "a/0", ""), up(5100, "a/0")]
    away = Impairment(Harm.CUT_OFF, 4000, 12_000, 0)
    assert false_offlines(trace, 6800, away) == []
    assert false_offlines(trace, 14_200, away) == [Rule.FALSE_OFFLINE]


def test_an_offline_of_one_who_came_to_a_node_far_from_a_store_that_was_coming_back() -> None:
    away, slow = Impairment(Harm.STORE_AWAY, 4000, 12_000), Impairment(Harm.SLOWED, 6000, 12_500, 0)
    left = [up(0, "a/0", 1), Left(5000, "a/0")]
    assert false_offlines([*left, up(7000, "a/0")], 9000, away, slow) == []
    assert false_offlines([*left, up(7000, "a/0")], 9000, away) == [Rule.FALSE_OFFLINE]
    assert false_offlines([*left, up(7000, "a/0")], 12_300, away, slow) == [Rule.FALSE_OFFLINE]
    assert false_offlines([*left, up(7000, "a/0"), Lost(11_500, "a/0", "")], 12_300, away, slow) == []
    assert false_offlines([up(0, "a/0")], 9000, away, slow) == [Rule.FALSE_OFFLINE]
    assert false_offlines([up(0, "a/0")], 14_000, slow) == [Rule.FALSE_OFFLINE]


def test_an_offline_of_one_who_came_while_the_store_was_away() -> None:
    away = Impairment(Harm.STORE_AWAY, 4000, 12_000)
    trace = [up(0, "a/0", 1), up(7000, "a/1"), Left(11_500, "a/0")]
    for at in (11_600, 12_000, 13_000):  # also by a node that is back before the other one
        assert false_offlines(trace, at, away) == [Rule.FALSE_OFFLINE]
    assert false_offlines(trace[:1], 11_600, away) == [Rule.FALSE_OFFLINE]


def test_an_offline_because_the_store_was_away() -> None:
    away = Impairment(Harm.STORE_AWAY, 5000, 15_000)
    for at in (6000, 12_000, 15_500, 20_000):
        assert false_offlines([up(0, "a/0")], at, away) == [Rule.FALSE_OFFLINE]


def test_where_clocks_are_wrong_it_counts_when_it_was_heard() -> None:
    trace = [up(0, "a/0"), Left(5000, "a/0"), up(5600, "a/0"), heard(5700, 2, "offline")]
    assert rules(facts(trace, skewed=True).false_offlines(trace)) == []
    trace = [up(0, "a/0"), Left(5000, "a/0"), up(5600, "a/0"), heard(6700, 2, "offline")]
    assert rules(facts(trace, skewed=True).false_offlines(trace)) == [Rule.FALSE_OFFLINE]


def test_what_a_client_of_a_node_that_was_stopped_is_told_late_was_committed_meanwhile() -> None:
    trace = [up(0), up(0, "a/0", 1), Left(5000, "a/0"), up(5020, "a/0", 1)]
    late = msgspec.structs.replace(heard(8400, 2, "offline"), stamp=WALL + 5005)
    stopped = Impairment(Harm.STOPPED, 4900, 8300, 0)
    assert rules(facts([*trace, late], stopped).false_offlines([*trace, late])) == []
    moved = [*trace, Lost(7900, "w", "ping timeout"), up(8300, node=1), late]
    assert rules(facts(moved, stopped).false_offlines(moved)) == []
    assert rules(facts(moved).false_offlines(moved)) == [Rule.FALSE_OFFLINE]
    assert rules(facts([*trace, late]).false_offlines([*trace, late])) == [Rule.FALSE_OFFLINE]


def test_what_a_node_tells_late_that_was_cut_off_until_the_store_went_away() -> None:
    trace = [up(0), up(0, "a/0", 1), Left(5000, "a/0"), up(5020, "a/0", 1)]
    late = msgspec.structs.replace(heard(14_000, 2, "offline"), stamp=0.0)
    cut, away = Impairment(Harm.CUT_OFF, 4900, 8300, 0), Impairment(Harm.STORE_AWAY, 8500, 13_900)
    assert rules(facts([*trace, late], cut, away).false_offlines([*trace, late])) == []
    for harms in ([cut], [away]):
        assert rules(facts([*trace, late], *harms).false_offlines([*trace, late])) == [Rule.FALSE_OFFLINE]


def test_what_a_client_missed_while_it_was_away_was_committed_meanwhile() -> None:
    away = [up(0), Lost(4900, "w", ""), up(7000)]
    trace = [up(0, "a/0"), Left(5000, "a/0"), up(5600, "a/0"), *away, heard(7100, 2, "offline")]
    assert rules(facts(trace, skewed=True).false_offlines(trace)) == []
    trace[-1] = Heard(7100, "w", "user-offline", "a", 2, "offline", WALL + 5000)
    assert rules(facts(trace).false_offlines(trace)) == []
    trace[-1] = Heard(7100, "w", "user-offline", "a", 2, "offline", WALL + 6000)
    assert rules(facts(trace).false_offlines(trace)) == [Rule.FALSE_OFFLINE]


# Who was gone


def test_leave_detection_is_measured_from_the_kill() -> None:
    trace = [up(0), told(1, ("a", 1, "online")), up(0, "a/0", 1), Lost(5002, "a/0", ""), heard(9800, 2, "offline")]
    assert leaves(facts(trace, killed(5000, node=1)), trace, pictures(trace), LONG) == ([4800], [])


def test_a_leave_after_a_kill_that_took_too_long_is_measured_too() -> None:
    trace = [up(0), told(1, ("a", 1, "online")), up(0, "a/0", 1), Lost(5002, "a/0", ""), heard(14_000, 2, "offline")]
    took, late = leaves(facts(trace, killed(5000, node=1)), trace, pictures(trace), LONG)
    assert (took, rules(late)) == ([9000], [Rule.LATE])


def test_a_leave_that_nobody_was_told() -> None:
    trace = [up(0), told(1, ("a", 1, "online")), up(0, "a/0", 1), Lost(5002, "a/0", "")]
    took, late = leaves(facts(trace, killed(5000, node=1)), trace, pictures(trace), LONG)
    assert (took, rules(late)) == ([], [Rule.LATE])


@pytest.mark.parametrize(
    ("end", "in_time", "too_late"), [(Left(5000, "a/0"), 6900, 7100), (Lost(5000, "a/0", ""), 8400, 8600)]
)
def test_a_leave_told_late(end: Record, in_time: float, too_late: float) -> None:
    start = [up(0), told(1, ("a", 1, "online")), up(0, "a/0", 1), end]
    for at, expected in ((in_time, []), (too_late, [Rule.LATE])):
        trace = [*start, heard(at, 2, "offline")]
        assert rules(leaves(facts(trace), trace, pictures(trace), LONG)[1]) == expected


def test_a_goodbye_that_a_killed_node_did_not_pass_on() -> None:
    trace = [up(0), told(1, ("a", 1, "online")), up(0, "a/0", 1), Left(4990, "a/0"), heard(9800, 2, "offline")]
    assert leaves(facts(trace, killed(5000, node=1)), trace, pictures(trace), LONG) == ([4800], [])
    assert false_offlines(trace[2:4], 4995, killed(5000, node=1)) == []


@pytest.mark.parametrize(("begin", "end"), [(4500, 4995), (5300, 5600)])
def test_a_goodbye_about_when_a_node_was_cut_off(begin: float, end: float) -> None:
    trace = [up(0), told(1, ("a", 1, "online")), up(begin, "a/0", 1), Left(end, "a/0")]
    away = facts(trace, Impairment(Harm.CUT_OFF, 5000, 13_000, 1))
    for at, expected in ((11_400, []), (11_600, [Rule.LATE])):
        told_late = [*trace, heard(at, 2, "offline")]
        assert rules(leaves(away, told_late, pictures(told_late), LONG)[1]) == expected


def test_a_leave_is_due_later_where_no_node_was_whole() -> None:
    trace = [up(0), told(1, ("a", 1, "online")), up(0, "a/0", 1), Lost(5000, "a/0", ""), heard(13_000, 2, "offline")]
    slowed = Impairment(Harm.SLOWED, 7000, 9000, 0)
    assert leaves(facts(trace, killed(5000, node=1), slowed), trace, pictures(trace), LONG) == ([8000], [])
    assert rules(leaves(facts(trace, killed(5000, node=1)), trace, pictures(trace), LONG)[1]) == [Rule.LATE]


def test_no_leave_of_one_who_came_back() -> None:
    trace = [up(0), told(1, ("a", 1, "online")), up(0, "a/0", 1), Lost(5000, "a/0", ""), up(6000, "a/0", 2)]
    assert leaves(facts(trace, killed(5000, node=1)), trace, pictures(trace), LONG) == ([], [])


def test_a_leave_told_before_they_come_back() -> None:
    trace = [up(0), told(1, ("a", 1, "online")), up(0, "a/0", 1), Lost(5000, "a/0", "")]
    trace += [heard(6600, 2, "offline"), heard(8400, 3, "online"), up(8700, "a/0", 1)]
    assert leaves(facts(trace), trace, pictures(trace), LONG) == ([], [])


def test_no_leave_of_one_who_may_have_been_let_in_again() -> None:
    trace = [
        up(0),
        told(1, ("a", 1, "online")),
        up(0, "a/0", 1),
        Lost(5000, "a/0", ""),
        Abandoned(7000, "a/0", 1, 6000),
    ]
    assert leaves(facts(trace), trace, pictures(trace), 12_000)[1] == []
    assert rules(leaves(facts(trace), trace, pictures(trace), LONG)[1]) == [Rule.LATE]


def test_a_leave_while_the_store_is_away_is_due_when_it_is_back() -> None:
    away = Impairment(Harm.STORE_AWAY, 4000, 20_000)
    trace = [up(0), told(1, ("a", 1, "online")), up(0, "a/0", 1), Left(5000, "a/0")]
    assert leaves(facts(trace, away), trace, pictures(trace), 26_000)[1] == []
    assert rules(leaves(facts(trace, away), trace, pictures(trace), LONG)[1]) == [Rule.LATE]


# Who heard less than others


def test_a_version_that_one_did_not_hear() -> None:
    trace = [up(0), up(0, "x", 1), told(1, ("a", 4, "offline")), heard(5000, 5, "online", client="x")]
    assert rules(missed(facts(trace), trace, pictures(trace), LONG)) == [Rule.LOST]
    trace.append(heard(6000, 5, "online"))
    assert rules(missed(facts(trace), trace, pictures(trace), LONG)) == []


def test_a_version_that_was_heard_too_late() -> None:
    trace = [up(0), up(0, "x", 1), heard(5000, 5, "online", client="x"), heard(7500, 5, "online")]
    assert rules(missed(facts(trace), trace, pictures(trace), LONG)) == [Rule.LOST]


def test_a_net_effect_of_nothing_is_no_loss() -> None:
    trace = [
        up(0),
        up(0, "x", 1),
        told(1, ("a", 4, "offline")),
        heard(5000, 5, "online", client="x"),
        heard(5100, 6, "offline", client="x"),
    ]
    assert rules(missed(facts(trace), trace, pictures(trace), LONG)) == []


def test_what_a_node_that_was_away_catches_up_on_is_one_net_effect() -> None:
    away = Impairment(Harm.CUT_OFF, 4000, 15_000, 0)
    trace = [
        up(0),
        up(0, "x", 1),
        told(1, ("a", 4, "offline")),
        heard(5000, 5, "online", client="x"),
        heard(14_000, 6, "offline", client="x"),
    ]
    assert rules(missed(facts(trace, away), trace, pictures(trace), LONG)) == []
    assert rules(missed(facts(trace), trace, pictures(trace), LONG)) == [Rule.LOST]


def test_who_is_at_a_node_that_is_away_may_hear_it_when_it_is_back() -> None:
    away = Impairment(Harm.CUT_OFF, 4000, 15_000, 0)
    trace = [up(0), up(0, "x", 1), told(1, ("a", 4, "offline")), heard(5000, 5, "online", client="x")]
    assert rules(missed(facts(trace, away), trace, pictures(trace), 18_000)) == []
    assert rules(missed(facts(trace, away), trace, pictures(trace), LONG)) == [Rule.LOST]


# The end


def end(**changes: object) -> Truth:
    same = {"a": (5, "online"), "watcher": (1, "online"), "b": (2, "offline")}
    values = {"at": LONG, "views": {0: same, 1: same}, "store": same, "ledger": {}} | changes
    return Truth(**values)  # type: ignore[arg-type]  # what tests change


CALM = [up(0), told(1, ("a", 5, "online"), ("watcher", 1, "online"), ("b", 2, "offline")), up(2, "a/0")]
KNOWING = [*CALM, told(3, ("a", 5, "online"), ("watcher", 1, "online"), ("b", 2, "offline"), client="a/0")]


def at_the_end(trace: Sequence[Record], truth: Truth) -> list[Rule]:
    return rules(agreement(facts(trace), pictures(trace), truth))


def test_all_agree() -> None:
    assert at_the_end(KNOWING, end()) == []


def test_a_view_disagrees() -> None:
    other = {"a": (4, "online"), "watcher": (1, "online"), "b": (2, "offline")}
    assert at_the_end(KNOWING, end(views={0: end().store, 1: other})) == [Rule.DISAGREE]


def test_the_store_has_a_ghost() -> None:
    assert at_the_end([*KNOWING, Left(10, "a/0")], end()) == [Rule.WRONG]


def test_the_store_lacks_one_who_is_there() -> None:
    assert Rule.WRONG in at_the_end([*KNOWING, up(9, "b/0")], end())


def test_a_client_knows_an_older_status() -> None:
    stale = [*KNOWING, told(4, ("b", 1, "online"))]
    assert at_the_end([*CALM[:2], told(1, ("b", 3, "online"))], end()).count(Rule.LOST) == 1
    assert at_the_end(stale, end()).count(Rule.LOST) == 1


def test_a_client_knows_nothing_of_someone() -> None:
    assert at_the_end([*CALM, up(4, "x")], end()).count(Rule.LOST) == 6


@pytest.mark.parametrize(
    "ledger",
    [
        [(4, "online", "offline"), (4, "offline", "online")],
        [(4, "online", "offline"), (5, "online", "offline")],
        [(5, "online", "online")],
    ],
)
def test_a_log_that_does_not_alternate(ledger: list[tuple[int, str, str]]) -> None:
    assert at_the_end(KNOWING, end(ledger={"a": ledger})) == [Rule.DIVERGENT]


def test_sessions_of_a_trace() -> None:
    trace = [up(0, "a/0"), Lost(5, "a/0", ""), up(7, "a/0", 1), Left(9, "a/0"), up(8, "b/0")]
    assert sessions(trace, OWNERS) == [
        Session("a/0", "a", 0, 0, 5),
        Session("a/0", "a", 1, 7, 9, goodbye=True),
        Session("b/0", "b", 0, 8),
    ]


# Webhooks


def hooked(*calls: tuple[str, int, str, bool]) -> Receiver:
    made = Receiver()
    made.calls = [
        Call(name, "user.online", user, version, {}, taken=taken)
        for name, version, user, taken in ((each[2], each[1], each[0], each[3]) for each in calls)
    ]
    return made


def test_webhooks_that_are_repeated_and_late_by_others_are_sound() -> None:
    sound = hooked(("a", 1, "m1", False), ("b", 1, "n1", True), ("a", 1, "m1", True), ("a", 2, "m2", True))
    again = hooked(("a", 1, "m1", True), ("a", 2, "m2", True), ("a", 1, "m1", True))
    assert sound.violations() == again.violations() == []
    assert (sound.missing("a", 2), again.missing("a", 3), sound.missing("c", 0)) == (set(), {3}, set())


@pytest.mark.parametrize(
    "calls",
    [
        [("a", 1, "m1", True), ("a", 1, "m2", True)],
        [("a", 1, "m1", True), ("a", 2, "m1", True)],
        [("a", 2, "m2", True), ("a", 1, "m1", True)],
        [("a", 1, "m1", False), ("a", 2, "m2", True), ("a", 1, "m1", True)],
    ],
)
def test_webhooks_out_of_order_or_under_another_id_are_found(calls: list[tuple[str, int, str, bool]]) -> None:
    assert hooked(*calls).violations()


def test_a_webhook_that_was_never_taken_is_found() -> None:
    assert hooked(("a", 1, "m1", True), ("a", 2, "m2", False)).missing("a", 2) == {2}
