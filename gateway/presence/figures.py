"""Metrics of the log: what this node commits, how late that is, and how long it takes to reach its view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.presence.model import ACTIVE, CHOSEN, CONNECTED, HEARTBEATS_STOPPED, INACTIVE, OFFLINE, RELEASED, Ending
from gateway.presence.view import RESYNCHRONISED
from gateway.runtime.measures import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.presence.model import Timing, Transition
    from gateway.presence.store import Commit

CAUSES = ("said", "lost", "heartbeats", "node_died")
"""How the gateway learns that a user has gone: they said so or were sent away, their connection was lost or closed by
the gateway, their heartbeats stopped, or the node that they were connected to died."""

_CAUSES = {
    Ending.LOST.value: "lost",
    Ending.TOO_SLOW.value: "lost",
    Ending.FLOODED.value: "lost",
    Ending.DRAINED.value: "lost",
    HEARTBEATS_STOPPED: "heartbeats",
    Ending.NODE_DIED.value: "node_died",
}


class Commits:
    """Counts what this node has committed, by its commands and by its sweeps."""

    def __init__(self) -> None:
        self.online: dict[str, int] = dict.fromkeys((CONNECTED, ACTIVE), 0)
        """How many users came online, by reason. The usual reasons begin at 0, so that Prometheus sees their first
        rise."""
        self.offline: dict[str, int] = dict.fromkeys((*Ending, HEARTBEATS_STOPPED, RELEASED), 0)
        """How many users went offline, by reason."""
        self.changed: dict[str, int] = dict.fromkeys((INACTIVE, ACTIVE, CHOSEN), 0)
        """How many users changed their status or text while online, by reason."""
        self.late = Histogram()
        """Seconds from the moment a grace or TTL ran out until that was committed."""
        self.swept_at: int | None = None
        """When this node last finished a sweep, in Unix milliseconds; None before the first."""
        self._end = 0
        """The end of the log at a recent sweep. While the view has not reached it, this node is behind."""
        self._behind_since = 0
        """When that sweep was."""

    def note(self, commit: Commit) -> None:
        """Count the transitions of a command; most have none."""
        for each in commit.transitions:
            if each.was is OFFLINE:
                kind = self.online
            elif each.now.status is not OFFLINE:
                kind = self.changed
            else:
                kind = self.offline
                if each.due is not None:
                    self.late.observe(max(0, each.at - each.due) / 1000)
            kind[each.reason] = kind.get(each.reason, 0) + 1

    def swept(self, commit: Commit, position: int, now: int) -> None:
        """Count what a sweep did.

        Args:
            commit: what it did.
            position: up to where this node has followed the log.
            now: the time, in Unix milliseconds.
        """
        self.note(commit)
        self.swept_at = now
        if position >= self._end:
            self._end, self._behind_since = commit.position, now

    def lag(self, position: int, now: int) -> float:
        """Seconds for which this node, whose view is at `position`, has been behind the log; 0 if it is not."""
        return 0.0 if position >= self._end else max(0, now - self._behind_since) / 1000


class LogFigures:
    """Measures how long it takes until this node knows of a change. A listener of the follower.

    Args:
        clock: the time, in Unix milliseconds.
        timing: the durations that presence follows.
        near: whether the store is in this process, where there is no delay to measure.
    """

    def __init__(self, clock: Callable[[], int], timing: Timing, *, near: bool) -> None:
        self.delay = Histogram()
        """Seconds from a commit to this node's view, of the last transition of each batch; empty if `near`."""
        self.leaves = {cause: Histogram() for cause in CAUSES}
        """Seconds from a user's last sign of life until this node knows that they have gone, by cause; see `CAUSES`."""
        self._clock = clock
        self._near = near
        self._held = {ending.value: timing.hold_after(ending) for ending in Ending}
        """Milliseconds from the last sign of life to `Transition.due`, by reason."""
        self._held[HEARTBEATS_STOPPED] = timing.ttl
        self._held[Ending.NODE_DIED.value] += timing.lease  # a node's last sign of life is its last renewal

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Take in new transitions."""
        last = transitions[-1]
        if not self._near and last.reason != RESYNCHRONISED:
            self.delay.observe(max(0, self._clock() - last.at) / 1000)
        for each in transitions:
            if each.now.status is OFFLINE and each.reason != RESYNCHRONISED:
                gone_at = each.at if each.due is None else each.due - self._held.get(each.reason, 0)
                self.leaves[_CAUSES.get(each.reason, "said")].observe(max(0, self._clock() - gone_at) / 1000)
