"""The rules of channels: fed with broken traces, they find each violation; fed with sound ones, none."""

from collections.abc import Sequence

import pytest

from chaos.channels import Spoken, early, membership, outside, repeated, rosters, shuffled, unheard
from chaos.node import may_see
from chaos.test_trace import TIMING, WALL, killed, rules, up
from chaos.trace import Joined, Left, Lost, Member, Message, Parted, Record, Rule, Up
from chaos.truth import Facts, Harm, Impairment, sessions

CHANNEL = "presence-room-a"
OWNERS = {"a/0": "a", "w": "watcher", "x": "other"}
ALL = ["a", "other", "watcher"]
END = 60_000.0
NOTHING = Facts(TIMING, ())
LOSS = Impairment(Harm.STORE_AWAY, 15_000, 18_000)


def joined(at: float, *members: str, client: str = "w", again: bool = False) -> Joined:
    return Joined(at, client, CHANNEL, list(members), again)


def came(at: float, user: str = "a", client: str = "w", stamp: float = 0.0) -> Member:
    return Member(at, client, CHANNEL, user, added=True, stamp=stamp)


def went(at: float, user: str = "a", client: str = "w", stamp: float = 0.0) -> Member:
    return Member(at, client, CHANNEL, user, added=False, stamp=stamp)


def told(*records: Record, impairments: Sequence[Impairment] = ()) -> list[Rule]:
    """Which rules of membership a trace breaks, with clients that go where nodes are not said."""
    facts = Facts(TIMING, sessions(records, OWNERS), impairments, WALL)
    return rules(membership(facts, records, CHANNEL, OWNERS, may_see, END)[1])


# Who is in a channel


def test_members_who_come_and_go() -> None:
    assert (
        told(
            *(up(0), joined(10, "watcher")),
            *(up(1000, "a/0", node=1), joined(1010, "a", "watcher", client="a/0"), came(1020)),
            *(Left(4000, "a/0"), went(4020)),
            *(up(6000, "a/0", node=1), joined(6010, "a", "watcher", client="a/0"), came(6020)),
        )
        == []
    )


@pytest.mark.parametrize("event", [came, went])
def test_a_member_comes_or_goes_twice_in_a_row(event: type) -> None:
    there = [up(0, "a/0", node=1), joined(10, "a", "watcher", client="a/0")] if event is came else []
    known = [joined(20, "watcher", *(["a"] if there and event is went else []))]
    once = [] if event is went else [came(30)]
    assert told(*there, up(15), *known, *once, event(40)) == [Rule.ALTERNATION]


def test_a_snapshot_on_the_same_connection_knows_what_no_event_told() -> None:
    there = [up(0, "a/0", node=1), joined(10, "a", "watcher", client="a/0"), up(15), joined(20, "a", "watcher")]
    assert told(*there, joined(30, "watcher"), came(40)) == [Rule.AHEAD]
    assert told(*there, Lost(25, "w", ""), up(28), joined(30, "watcher"), came(40)) == []
    assert told(*there, Lost(25, "w", ""), up(28), joined(30, "watcher", again=True), came(40)) == []


def test_in_the_end_a_client_knows_of_one_too_few_or_too_many() -> None:
    there = [up(0, "a/0", node=1), joined(10, "a", "watcher", client="a/0")]
    assert told(*there, up(15), joined(20, "watcher")) == [Rule.MEMBERS]
    assert told(up(0), joined(10, "a", "watcher")) == [Rule.MEMBERS]


def test_of_one_whom_a_rule_hides_nothing_is_expected() -> None:
    owners = {"s/0": "s-shy", "w": "w-stranger"}
    records = [up(0, "s/0", node=1), joined(10, "s-shy", "w-stranger", client="s/0"), up(15), joined(20, "w-stranger")]
    facts = Facts(TIMING, sessions(records, owners), (), WALL)
    assert rules(membership(facts, records, CHANNEL, owners, may_see, END)[1]) == []
    everyone = membership(facts, records, CHANNEL, owners, lambda _viewer, _user: True, END)[1]
    assert Rule.MEMBERS in rules(everyone)


def test_a_member_who_was_there_is_told_to_have_gone() -> None:
    records = [up(0, "a/0", node=1), joined(10, "a", "watcher", client="a/0"), up(15), joined(20, "a", "watcher")]
    for stamp in (0.0, WALL + 20_000):
        assert told(*records, went(20_010, stamp=stamp), came(20_500)) == [Rule.REMOVED]
    lost = [Lost(19_000, "a/0", ""), up(19_500, "a/0", node=1), joined(19_510, "a", "watcher", client="a/0")]
    assert told(*records, *lost, went(20_400, stamp=WALL + 20_390), came(20_500)) == [Rule.REMOVED]
    late = [Lost(19_000, "a/0", ""), up(21_000, "a/0", node=1), joined(21_010, "watcher", "a", client="a/0")]
    assert told(*records, *late[:1], went(20_600, stamp=WALL + 20_590), *late[1:], came(21_020)) == []


def test_a_node_that_was_away_tells_late_who_went_and_came_back() -> None:
    records = [up(0, "a/0", node=1), joined(10, "a", "watcher", client="a/0"), up(15), joined(20, "a", "watcher")]
    back = [Left(19_000, "a/0"), up(20_000, "a/0", node=1), joined(20_010, "a", "watcher", client="a/0")]
    late = [went(24_500, stamp=WALL + 24_490), came(24_510, stamp=WALL + 24_500)]
    assert told(*records, *back, *late, impairments=[Impairment(Harm.CUT_OFF, 18_000, 24_000, 0)]) == []
    assert Rule.REMOVED in told(*records, *back, *late)


def test_members_of_a_killed_node_leave_in_time() -> None:
    records = [up(0, "a/0", node=1), joined(10, "a", "watcher", client="a/0"), up(15), joined(20, "a", "watcher")]
    dead = [Lost(10_000, "a/0", "")]
    assert told(*records, *dead, went(14_000), impairments=[killed(10_000, node=1)]) == []
    assert told(*records, *dead, went(30_000), impairments=[killed(10_000, node=1)]) == [Rule.MEMBERS]


def test_one_who_went_before_it_was_let_in_may_have_been() -> None:
    records = [up(0), joined(10, "watcher"), up(1000, "a/0", node=1), came(1020), Lost(1030, "a/0", "")]
    assert told(*records, went(2600)) == []


def test_told_of_members_before_it_is_in() -> None:
    assert rules(early([up(0), came(5), joined(10, "watcher")])) == [Rule.EARLY]
    assert rules(early([up(0), joined(10, "watcher"), came(15)])) == []
    assert rules(early([up(0), joined(10), Lost(11, "w", ""), up(20), came(25), joined(30)])) == [Rule.EARLY]
    assert rules(early([up(0), joined(10), Parted(11, "w", CHANNEL), came(25)])) == [Rule.EARLY]


def test_connected_in_the_end_and_in_no_channel() -> None:
    asked = {"w": (CHANNEL,)}
    assert rules(outside([up(0)], asked, END)) == [Rule.STUCK]
    assert rules(outside([up(0), joined(10)], asked, END)) == []
    assert rules(outside([up(0), joined(10), Parted(20, "w", CHANNEL)], asked, END)) == [Rule.STUCK]
    assert rules(outside([up(0), joined(10), Left(20, "w")], asked, END)) == []


def test_a_node_has_others_than_are_there() -> None:
    assert rules(rosters({0: ["a", "b"], 1: ["b", "a"]}, {"a", "b"}, END)) == []
    assert rules(rosters({0: ["a"], 1: ["a", "b", "c"]}, {"a", "b"}, END)) == [Rule.MEMBERS] * 2


# What is said


def spoken(at: float, number: int) -> Spoken:
    return Spoken(at - 10, at, CHANNEL, number)


def message(at: float, number: int, client: str = "w") -> Message:
    return Message(at, client, CHANNEL, number)


def test_a_message_twice() -> None:
    said = [spoken(1000, 1)]
    assert rules(repeated(NOTHING, [message(1010, 1), message(1020, 1, "x")], [], said)) == []
    assert rules(repeated(NOTHING, [message(1010, 1), Lost(1020, "w", ""), up(1030), message(1040, 1)], [], said)) == [
        Rule.REPEATED
    ]
    assert rules(repeated(NOTHING, [message(16_000, 1), message(16_020, 1)], [LOSS], [spoken(16_000, 1)])) == []
    assert rules(repeated(NOTHING, [message(1010, 1), message(1020, 1)], [LOSS], said)) == [Rule.REPEATED]


def test_one_who_comes_anew_to_a_node_that_was_away_hears_what_another_told_before() -> None:
    said = [spoken(1000, 1), spoken(1100, 2)]
    trace = [up(0), joined(10), message(1010, 1), message(1110, 2), Lost(1200, "w", ""), up(1300, node=1)]
    again = [joined(1310), message(9000, 1), message(9010, 2)]
    cut = Facts(TIMING, (), [Impairment(Harm.CUT_OFF, 900, 8000, 1)])
    assert rules(repeated(cut, [*trace, *again], [], said)) == []
    assert rules(shuffled(cut, [*trace, *again], [], said)) == []
    assert rules(repeated(cut, [*trace, *again, message(9020, 2)], [], said)) == [Rule.REPEATED]
    assert rules(repeated(NOTHING, [*trace, *again], [], said)) == [Rule.REPEATED] * 2
    early = [message(1305, 1), joined(1310)]  # heard before it is told that it is in the channel
    assert rules(repeated(cut, [*trace, *early], [], said)) == []
    back = [message(1305, 1), joined(1310, again=True)]
    assert rules(repeated(cut, [*trace, *back], [], said)) == [Rule.REPEATED]


def test_messages_in_two_orders() -> None:
    said = [spoken(1000, 1), spoken(1000, 2), spoken(1000, 3)]
    one = [message(1010, 1), message(1020, 3), message(1030, 2)]
    assert rules(shuffled(NOTHING, [*one, message(1015, 1, "x"), message(1020, 2, "x")], [], said)) == []
    assert rules(shuffled(NOTHING, [*one, message(1015, 2, "x"), message(1020, 3, "x")], [], said)) == [Rule.SHUFFLED]


def lacking(records: Sequence[Record], *said: Spoken, impairments: Sequence[Impairment] = ()) -> list[Rule]:
    facts = Facts(TIMING, sessions(records, OWNERS), impairments, WALL)
    losses = [each for each in impairments if each is LOSS]
    return rules(unheard(facts, records, said, losses, END))


def test_a_message_that_does_not_come() -> None:
    there: list[Record] = [up(0), joined(10)]
    assert lacking([*there, message(1010, 1)], spoken(1000, 1)) == []
    assert lacking(there, spoken(1000, 1)) == [Rule.UNHEARD]
    assert lacking([*there, Lost(1500, "w", "")], spoken(1000, 1)) == []
    assert lacking([up(0), joined(1005)], spoken(1000, 1)) == []
    assert lacking(there, spoken(16_000, 1), impairments=[LOSS]) == []
    assert lacking(there, spoken(1000, 1), impairments=[LOSS]) == [Rule.UNHEARD]


@pytest.mark.parametrize("end", [Left(900, "w"), Lost(900, "w", "")])
def test_what_was_asked_for_anew_and_recovered_is_no_stay_from_before_it(end: Record) -> None:
    anew = Up(1200, "w", 1, resumed=True, recovered=False)
    asked: list[Record] = [up(0), joined(10), end, anew, Lost(1300, "w", ""), up(1400)]
    assert lacking([*asked, joined(1410, again=True)], spoken(1000, 1)) == []
    assert lacking([*asked, joined(1410, again=True)], spoken(1500, 1)) == [Rule.UNHEARD]
    assert lacking([*asked, joined(1410, again=True)], spoken(500, 1)) == []


def test_a_message_that_is_not_recovered() -> None:
    away: list[Record] = [up(0), joined(10), Lost(900, "w", ""), Up(1200, "w", 1, resumed=True)]
    assert lacking([*away, joined(1210, again=True)], spoken(1000, 1)) == [Rule.UNHEARD]
    assert lacking([*away, message(1205, 1), joined(1210, again=True)], spoken(1000, 1)) == []
    assert lacking([*away, joined(1210)], spoken(1000, 1)) == []
