"""What operators ask and say of webhooks by HTTP: dead letters, listed and sent again, and endpoints that stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Raw

from gateway import wire
from gateway.doors.http import Call, Caller, Operation
from gateway.errors import NotFoundError

if TYPE_CHECKING:
    from gateway.webhooks.sender import Webhooks


class DeadLettersQuery(wire.Body):
    """Which dead letters, and how many at the most."""

    endpoint: str | None = None
    limit: Annotated[int, Meta(ge=1, le=wire.MAX_IDS)] = 100


class WebhookEndpoint(wire.Body):
    """One endpoint of webhooks."""

    name: str
    waiting: int
    """Events in its queue."""
    dead: int
    """Its dead letters."""
    stopped: str | None
    """Why nothing is sent to it; null where it is."""
    configured: bool
    """Whether this node has it in its settings."""


class WebhookEndpoints(wire.Body):
    """Every endpoint that is configured, or ever was."""

    endpoints: list[WebhookEndpoint]


class DeadLetter(wire.Body):
    """A webhook that an endpoint did not take in time."""

    id: str
    """Its ``webhook-id``."""
    endpoint: str
    type: str
    timestamp: wire.Timestamp
    """When the event was committed."""
    failed_at: wire.Timestamp
    """When it was given up."""
    attempts: int
    reason: str
    """What the endpoint said last."""
    body: Raw
    """What was sent."""


class DeadLetters(wire.Body):
    """Dead letters, the oldest of each endpoint first."""

    letters: list[DeadLetter]
    count: int
    """How many there are in all."""


class ReplayWebhooks(wire.Body):
    """Which dead letters to send again: those with these ids, or all."""

    ids: Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=wire.MAX_IDS)] | None = None
    all: bool = False
    endpoint: str | None = None
    """Of which endpoint; null for all."""

    def __post_init__(self) -> None:
        if self.all == bool(self.ids):
            raise ValueError("takes ids, or all: true")


class ReplayedWebhook(wire.Body):
    """One that is sent again."""

    endpoint: str
    id: str


class ReplayedWebhooks(wire.Body):
    """What is sent again."""

    replayed: list[ReplayedWebhook]
    count: int


class ResumeWebhooks(wire.Body):
    """Which endpoint to send to again."""

    endpoint: str


class ResumedWebhooks(wire.Body):
    """Whether it was stopped."""

    resumed: bool


class ForgetWebhooks(wire.Body):
    """Which endpoint to let go of."""

    endpoint: str


class ForgottenWebhooks(wire.Body):
    """What was kept for it."""

    waiting: int
    """Events that were in its queue."""
    dead: int
    """Its dead letters."""


def webhook_operations(webhooks: Webhooks | None) -> tuple[Operation, ...]:
    """The rows of the HTTP door's table that are about webhooks.

    A service key is asked for. It may ask of every tenant, so these are not of one.

    Args:
        webhooks: who answers; None where no endpoint is configured, which each call then says.
    """
    door = _Webhooks(webhooks)
    return (
        Operation(
            method="GET",
            path="/api/webhooks",
            summary="The endpoints of webhooks, and what waits for them",
            caller=Caller.SERVICE,
            answers=WebhookEndpoints,
            handler=door.endpoints,
        ),
        Operation(
            method="GET",
            path="/api/webhooks/dead-letters",
            summary="Webhooks that an endpoint did not take in time",
            caller=Caller.SERVICE,
            query=DeadLettersQuery,
            answers=DeadLetters,
            handler=door.letters,
        ),
        Operation(
            method="POST",
            path="/api/webhooks/replay",
            summary="Send dead letters again, under the same id",
            caller=Caller.SERVICE,
            body=ReplayWebhooks,
            answers=ReplayedWebhooks,
            handler=door.replay,
        ),
        Operation(
            method="POST",
            path="/api/webhooks/resume",
            summary="Send to an endpoint again that had answered 410",
            caller=Caller.SERVICE,
            body=ResumeWebhooks,
            answers=ResumedWebhooks,
            handler=door.resume,
        ),
        Operation(
            method="POST",
            path="/api/webhooks/forget",
            summary="Let go of all that is kept for an endpoint that is configured no more",
            caller=Caller.SERVICE,
            body=ForgetWebhooks,
            answers=ForgottenWebhooks,
            handler=door.forget,
        ),
    )


class _Webhooks:
    """The handlers of these operations."""

    def __init__(self, webhooks: Webhooks | None) -> None:
        self._given = webhooks

    @property
    def _webhooks(self) -> Webhooks:
        if self._given is None:
            raise NotFoundError("no webhook is configured: see PRESENCE_WEBHOOK_URL and PRESENCE_WEBHOOKS")
        return self._given

    async def endpoints(self, _call: Call) -> WebhookEndpoints:
        configured = self._webhooks.configured
        return WebhookEndpoints(
            endpoints=[
                WebhookEndpoint(
                    name=name,
                    waiting=state.waiting,
                    dead=state.dead,
                    stopped=state.stopped,
                    configured=name in configured,
                )
                for name, state in (await self._webhooks.states()).items()
            ]
        )

    async def letters(self, call: Call) -> DeadLetters:
        found = await self._webhooks.letters(call.query.endpoint)
        letters = [
            DeadLetter(
                id=letter.message.id,
                endpoint=name,
                type=letter.message.type,
                timestamp=wire.timestamp(letter.message.at),
                failed_at=wire.timestamp(letter.failed_at),
                attempts=letter.attempts,
                reason=letter.reason,
                body=letter.message.body,
            )
            for name, letter in found[: call.query.limit]
        ]
        return DeadLetters(letters=letters, count=len(found))

    async def replay(self, call: Call) -> ReplayedWebhooks:
        ids = None if call.body.all else frozenset(call.body.ids or ())
        replayed = await self._webhooks.replay(ids, call.body.endpoint)
        return ReplayedWebhooks(
            replayed=[ReplayedWebhook(endpoint=name, id=found) for name, found in replayed], count=len(replayed)
        )

    async def resume(self, call: Call) -> ResumedWebhooks:
        return ResumedWebhooks(resumed=await self._webhooks.resume(call.body.endpoint))

    async def forget(self, call: Call) -> ForgottenWebhooks:
        waiting, dead = await self._webhooks.forget(call.body.endpoint)
        return ForgottenWebhooks(waiting=waiting, dead=dead)
