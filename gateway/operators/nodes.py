"""Which nodes there are, what each says of itself, and how one is drained from afar, and takes clients again."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.errors import ConflictError, NotFoundError, StoreUnavailableError, UnavailableError
from gateway.operators.agreement import differing
from gateway.runtime.tasks import end

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from gateway.connections.draining import Draining
    from gateway.nodes.bus import Bus
    from gateway.presence.follower import Follower
    from gateway.presence.store import Store

_log = structlog.get_logger(__name__)

ANSWER = 1.0
"""Seconds that other nodes have to answer."""

CATCH_UP = 0.5
"""Seconds of these in which a node may come to where the log ended when it was asked."""

FIRST, AGAIN = 5.0, 300.0
"""Seconds from the start until the nodes are compared, and from each time to the next."""

_MILLISECOND = 20
"""How far a position is to be shifted to the right, to be a time in Unix milliseconds."""


class Waiting(msgspec.Struct, frozen=True):
    """What waits for one endpoint of webhooks."""

    endpoint: str
    events: int
    lag: int
    """Milliseconds since the oldest was committed."""
    stopped: str | None
    """Why nothing is sent to it; None where it is."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One client of Socket.IO."""

    namespace: str
    id: str
    client: str
    """What its Engine.IO connection is called, but for its end, by which it could be taken over."""
    upgraded: bool
    """Whether it is by WebSocket."""
    rooms: tuple[str, ...]
    """Those that it was put into."""
    address: str | None
    user_agent: str | None
    tenant: str | None
    """Whose it is; None where it is nobody's, and so in the next two."""
    user_id: str | None
    connected_at: int | None
    """Unix milliseconds."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says of itself."""

    node: str
    version: str
    compiled: bool
    pid: int
    at: int
    """When it says so, in Unix milliseconds; likewise the next."""
    started_at: int
    connections: int
    users: int
    """Of these connections."""
    sockets: dict[str, int]
    """How many clients of Socket.IO are in each namespace."""
    clients: int
    """How many Engine.IO connections there are, by polling and by WebSocket, whether or not they are somebody's."""
    opened: int
    """How many of these there ever were."""
    polling: int
    """How many of these are by polling."""
    draining: bool
    away: str | None
    """Why the store cannot be reached; None where it can."""
    clock_offset: int
    """Milliseconds that this machine's clock is behind the store's."""
    webhooks: tuple[Waiting, ...] | None
    """Of the node that sends; None on the others."""
    log_lag: int | None = None
    """Milliseconds that its view needed to show what was committed when it was asked, or is behind; None where nobody
    knows."""
    listed: tuple[Listed, ...] = ()
    """Its clients of Socket.IO, as many as were asked for."""
    settings: dict[str, int] = {}
    """What tells whether it has them as others do; see `agreement.digests`."""


class KnownNode(msgspec.Struct, frozen=True):
    """A node, as the one that is asked knows it."""

    node: str
    lease_until: int | None
    """Unix milliseconds; None where it holds no lease, or the store is away."""
    report: Report | None
    """What it says of itself; None where it has not answered in time: it is dead, cut off, or very busy."""
    differs: tuple[str, ...] = ()
    """The variables that it has otherwise than the node that was asked."""


class _WhoIsThere(msgspec.Struct, frozen=True):
    """Say how you are."""

    id: str
    end: int
    """Where the log ends."""
    drain: str | None = None
    """The node that is to drain; None for none. It alone answers."""
    undrain: str | None = None
    """The node that is to take clients again; likewise."""
    list: int = 0
    """How many of its clients of Socket.IO each is to name."""


class _Here(msgspec.Struct, frozen=True):
    """What one node says to that."""

    id: str
    report: Report


class _Question:
    """One that some nodes are to answer."""

    def __init__(self, nodes: set[str]) -> None:
        self.missing = nodes
        self.reports: dict[str, Report] = {}
        self.answered = asyncio.Event()


class Nodes:
    """The nodes of the cluster, as this one finds them.

    Args:
        node: this one's name.
        bus: how others are asked.
        store: what knows of leases.
        follower: what reads the log here.
        report: what this node says of itself, called with how many clients to name where any are to be.
        draining: lets every client of this node go to another, and takes clients again.
    """

    def __init__(
        self,
        node: str,
        bus: Bus,
        store: Store,
        follower: Follower,
        report: Callable[..., Report],
        draining: Draining,
    ) -> None:
        self.node = node
        self._bus = bus
        self._store = store
        self._follower = follower
        self._report = report
        self._draining = draining
        self._questions: dict[str, _Question] = {}
        self._looking: dict[int, asyncio.Task[list[KnownNode]]] = {}
        """Those who ask now, by how many clients each node is to name."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.differing: dict[str, tuple[str, ...]] = {}
        """The variables that other nodes had otherwise when this one looked last, by the node."""
        bus.subscribe("who-is-there", _WhoIsThere, self._on_question)
        bus.subscribe("here", _Here, self._on_answer)

    async def look(self, clients: int = 0) -> list[KnownNode]:
        """Ask every node how it is; those who ask the same meanwhile get the same answer.

        Args:
            clients: how many of its clients of Socket.IO each is to name.

        Returns:
            Each that holds a lease or answers, by name. While the store is away, this one alone.
        """
        if clients not in self._looking:
            self._looking[clients] = task = asyncio.create_task(self._look(clients))
            task.add_done_callback(lambda _task: self._looking.pop(clients))
        return await asyncio.shield(self._looking[clients])

    async def drain(self, node: str, *, force: bool = False) -> Report:
        """Have a node take no more clients, and let those it has go to others; return what it says when it begins.

        Args:
            node: its name.
            force: whether it is to drain also where no other node takes clients.

        Raises:
            NotFoundError: there is no such node.
            ConflictError: no other node is known to take its clients.
            UnavailableError: it has not answered. It drains when it hears of it, if it does.
            StoreUnavailableError: the others cannot be reached.
        """
        if not force:
            await self._check_who_takes_those_of(node)
        if node == self.node:
            self._begin_to_drain()
            return msgspec.structs.replace(self._report(), draining=True)
        return await self._tell(node, "it drains when it hears of it, if it still runs", drain=node)

    async def undrain(self, node: str) -> Report:
        """Have a node take clients again that was drained; return what it says then.

        Raises:
            NotFoundError: there is no such node.
            ConflictError: it stops.
            UnavailableError: it has not answered.
            StoreUnavailableError: the others cannot be reached.
        """
        if node == self.node:
            self._draining.end()
            said = self._report()
        else:
            said = await self._tell(node, "it takes clients when it hears of it, if it still runs", undrain=node)
        if said.draining:
            raise ConflictError(f"{node} stops, and takes no clients any more: start it again")
        return said

    async def run(self) -> None:
        """Look from time to time whether all nodes have the settings that they are to have alike, until cancelled."""
        await asyncio.sleep(FIRST)
        while True:
            try:
                self.compare(await self.look())
            except Exception:
                _log.exception("the nodes cannot be compared; trying again")
            await asyncio.sleep(AGAIN)

    def compare(self, known: list[KnownNode]) -> None:
        """Keep, and log, which settings other nodes have otherwise."""
        before, self.differing = self.differing, {each.node: each.differs for each in known if each.differs}
        for node, names in self.differing.items():
            if before.get(node) != names:
                _log.warning("another node has other settings; set them alike", node=node, differs=list(names))
        for node in before.keys() - self.differing.keys():
            _log.info("no more settings differ", node=node)

    def warnings(self) -> list[str]:
        """What an operator is to know of the other nodes."""
        return [
            f"{node} has other settings than this node: {', '.join(names)}; set them alike"
            for node, names in sorted(self.differing.items())
        ]

    async def close(self) -> None:
        """Ask and answer no more."""
        await end([*self._tasks, *self._looking.values()])

    # Asking

    async def _check_who_takes_those_of(self, node: str) -> None:
        known = await self.look()
        takes = {each.node for each in known if each.report is not None and not each.report.draining}
        if node in takes and len(takes) == 1:
            raise ConflictError(
                f"no other node takes clients, and those of {node} would have nowhere to go: start another, or undrain"
                " one; --force, or ?force=true, drains it all the same"
            )

    async def _tell(self, node: str, otherwise: str, **what: str) -> Report:
        """Tell another node what to do, and return what it says when it does."""
        leases = await self._store.leases()
        if node not in leases:
            raise NotFoundError(f"there is no node {node}; those that there are: {', '.join(sorted(leases))}")
        answers = await self._ask({node}, 0, **what)
        if node not in answers:
            raise UnavailableError(f"{node} has not answered; {otherwise}")
        return answers[node]

    async def _look(self, clients: int) -> list[KnownNode]:
        try:
            leases, log_end = await self._store.leases(), await self._store.position()
        except StoreUnavailableError:
            return [KnownNode(self.node, None, self._report(clients))]
        others = set(leases) - {self.node}
        asking = self._ask(others, log_end, list=clients)
        own, reports = await asyncio.gather(self._report_at(log_end, clients), asking)
        reports[self.node] = own
        return [
            KnownNode(name, leases.get(name), said, () if said is None else differing(own.settings, said.settings))
            for name in sorted({*leases, *reports})
            for said in [reports.get(name)]
        ]

    async def _ask(self, nodes: set[str], log_end: int, **what: Any) -> dict[str, Report]:
        """Ask other nodes, and return what they say, by their names, when those have answered that are to, or in time.

        Args:
            nodes: those that are to.
            log_end: up to where the log went.
            what: what else the question says.
        """
        if not nodes:
            return {}
        asked, question = secrets.token_hex(8), _Question(set(nodes))
        self._questions[asked] = question
        try:
            self._bus.publish("who-is-there", _WhoIsThere(asked, log_end, **what))
            async with asyncio.timeout(ANSWER):
                await question.answered.wait()
        except TimeoutError:
            _log.debug("nodes have not answered", nodes=sorted(question.missing))
        finally:
            del self._questions[asked]
        return question.reports

    async def _on_answer(self, said: _Here) -> None:
        question = self._questions.get(said.id)
        if question is not None:
            question.reports[said.report.node] = said.report
            question.missing.discard(said.report.node)
            if not question.missing:
                question.answered.set()

    # Answering

    async def _on_question(self, asked: _WhoIsThere) -> None:
        if asked.drain is None and asked.undrain is None:
            self._spawn(self._answer(asked))  # what else comes by the bus does not wait for the log
        elif asked.drain == self.node:
            self._begin_to_drain()
            self._bus.publish("here", _Here(asked.id, msgspec.structs.replace(self._report(), draining=True)))
        elif asked.undrain == self.node:
            self._draining.end()
            self._bus.publish("here", _Here(asked.id, self._report()))

    async def _answer(self, asked: _WhoIsThere) -> None:
        self._bus.publish("here", _Here(asked.id, await self._report_at(asked.end, asked.list)))

    async def _report_at(self, log_end: int, clients: int) -> Report:
        """What this node says of itself when it has read the log up to a position, or cannot in time."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            async with asyncio.timeout(CATCH_UP):
                await self._follower.reach(log_end)
        except (TimeoutError, StoreUnavailableError):
            behind = (log_end >> _MILLISECOND) - (self._follower.position >> _MILLISECOND)
            return msgspec.structs.replace(self._report(clients), log_lag=max(behind, round(CATCH_UP * 1000)))
        return msgspec.structs.replace(self._report(clients), log_lag=round((loop.time() - begun) * 1000))

    def _begin_to_drain(self) -> None:
        _log.info("an operator has this node drained", node=self.node)
        self._spawn(self._draining.begin())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
