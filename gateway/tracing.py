"""Traces by OpenTelemetry, for ``TRACING=true``: the one module that imports it, and nothing imports this otherwise.

A command is one trace, wherever it goes on::

    POST /presence/offline          where it came by HTTP, and part of the caller's trace where they sent a traceparent
      presence.release              the command, on the node that was given it
        presence.store              in the store; what it commits has its traceparent, on the log and in the outbox
          presence.log              on each node: from the commit to its view
          presence.fanout           on each node that has whom to tell
          presence.webhook          on the node that sends: each attempt, whose own traceparent the endpoint gets

It is the same of commands in channels, of messages and of notifications, whose log is the bus, and whose store may be a
queue: what waits there has the traceparent with it, and is told to whoever comes for it, on whatever node. What systems
that take part in a trace say of it, its tracestate, goes along everywhere.

What a sweep commits is a trace of its own; one that commits nothing leaves none.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

import structlog
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.channels.channels import Channels
from gateway.channels.events import native_name
from gateway.channels.messages import Messages
from gateway.channels.names import parse_scope
from gateway.errors import ConfigurationError
from gateway.nodes.cluster import Cluster
from gateway.presence.model import PART
from gateway.presence.tracker import Tracker
from gateway.redis.stream import time_of
from gateway.runtime.traces import Trace
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from aiohttp import web
    from aiohttp.typedefs import Handler
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, TraceState

    from gateway.channels.messages_wire import To
    from gateway.channels.model import Draft, Joined, Person, Said, Subscriber
    from gateway.delivery.inbox import Inbox
    from gateway.delivery.notifications import Delivery, Notification
    from gateway.delivery.queue import Put, Queued
    from gateway.nodes.bus import Bus
    from gateway.presence.clock import Clock
    from gateway.presence.follower import Follower
    from gateway.presence.model import Beat, Choice, Connection, Ending, Transition
    from gateway.presence.store import Commit, Store
    from gateway.webhooks.event import Message
    from gateway.webhooks.post import Answer, Poster
    from gateway.webhooks.sender import Webhooks

_log = structlog.get_logger(__name__)

_MS = 1_000_000
"""Nanoseconds, which OpenTelemetry counts, in one of the milliseconds that presence goes by."""

_FAILED = 500
"""HTTP statuses from here on are the gateway's fault, and mark a span as failed."""

MAX_TRACESTATE = 512
"""Characters of a tracestate that go on; https://www.w3.org/TR/trace-context/#tracestate-limits."""

LONG_ENTRY = 128
"""Characters past which an entry of one that is too long goes first, as it is there."""

_propagator = TraceContextTextMapPropagator()


class Tracing:
    """One node's spans.

    They go where the application that the gateway is attached to sends its own, if it has set a provider of traces;
    otherwise by OTLP over HTTP, as ``OTEL_EXPORTER_OTLP_ENDPOINT`` and the SDK's other variables say.

    Args:
        node: whose.

    Raises:
        ConfigurationError: ``OTEL_TRACES_EXPORTER`` names what there is not.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._own: TracerProvider | None = None
        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider):
            provider = self._own = _provider(node)
        self._tracer = provider.get_tracer("presence-gateway", __version__)

    # Spans

    @contextmanager
    def span(self, name: str, tenant: str, user_id: str | None, channel: str | None = None) -> Iterator[Span]:
        """A span of what is done for a user, or in a channel, within the one that is under way."""
        with self._tracer.start_as_current_span(name, attributes=self._about(tenant, user_id, channel)) as span:
            yield span

    @contextmanager
    def step(self, name: str) -> Iterator[Span]:
        """A span within the one that is under way, of no one user."""
        with self._tracer.start_as_current_span(name, attributes={"presence.node": self._node}) as span:
            yield span

    @contextmanager
    def attempt(self, name: str) -> Iterator[Span]:
        """A span that nobody is told of, unless it is ended."""
        span = self._tracer.start_span(name, attributes={"presence.node": self._node})
        with trace.use_span(span, end_on_exit=False):
            yield span

    @contextmanager
    def part_of(self, place: Trace) -> Iterator[None]:
        """Do something as part of a trace, with no span of its own."""
        token = context.attach(_within(place.traceparent, place.tracestate))
        try:
            yield
        finally:
            context.detach(token)

    @contextmanager
    def heard(self, place: Trace, topic: str, position: int) -> Iterator[None]:
        """Handle, as part of its trace, what this node has heard by the bus."""
        with self.part_of(place):
            now = time.time_ns()
            attributes = {"presence.node": self._node, "presence.topic": topic}
            begun = min(time_of(position) * _MS, now)
            self._tracer.start_span("presence.log", attributes=attributes, start_time=begun).end(now)
            yield

    @staticmethod
    def current() -> Trace | None:
        """What trace is under way; None for none."""
        return _trace_of(trace.get_current_span())

    def told(self, tenant: str, user_id: str | None, channel: str | None, begun: int, recipients: int) -> None:
        """Tell, as part of the trace that is under way, that clients were told something since `begun`, in nanoseconds.

        It is nothing where there is no such trace, or nobody was told.
        """
        if recipients and self.current() is not None:
            attributes = self._about(tenant, user_id, channel) | {"presence.recipients": recipients}
            self._tracer.start_span("presence.fanout", attributes=attributes, start_time=begun).end()

    def handed(self, tenant: str, user_id: str, queued: Sequence[Queued]) -> None:
        """Tell that a client of a user was handed what waited."""
        for each in queued:
            if each.trace is not None:
                with self.part_of(each.trace):
                    self.told(tenant, user_id, None, time.time_ns(), 1)

    def publish(self, transitions: Sequence[Transition]) -> None:
        """Tell, as a listener of the follower, when this node's view had what was committed."""
        now = time.time_ns()
        for each in transitions:
            if each.traceparent is not None:
                begun = min(each.at * _MS, now)
                self._told("presence.log", each, begun, now, {"presence.reason": str(each.reason)})

    def flushed(self, transitions: Sequence[Transition], took: float, recipients: int) -> None:
        """Tell that clients were told.

        Args:
            transitions: of what.
            took: how many seconds that took.
            recipients: how many clients were written to.
        """
        now = time.time_ns()
        for each in transitions:
            if each.traceparent is not None:
                begun = now - round(took * 1000 * _MS)
                self._told("presence.fanout", each, begun, now, {"presence.recipients": recipients})

    def poster(self, endpoint: str, poster: Poster) -> Poster:
        """Send an event as `poster` does, with a span for each attempt; what is part of no trace is left as it is."""

        async def post(message: Message, now: int) -> Answer:
            if message.traceparent is None:
                return await poster(message, now)
            attributes = {"presence.node": self._node, "presence.endpoint": endpoint, "presence.event": message.id}
            with self._tracer.start_as_current_span(
                "presence.webhook", _within(message.traceparent, message.tracestate), SpanKind.CLIENT, attributes
            ) as span:
                within = _trace_of(span) or Trace(message.traceparent, message.tracestate)
                answer = await poster(message.within(within.traceparent, within.tracestate), now)
                if answer.reason is not None:
                    span.set_status(StatusCode.ERROR, answer.reason)
                return answer

        return post

    def around(self, handler: Handler, name: str) -> Handler:
        """Handle a request within a span, which is part of the caller's trace, if they say that there is one."""

        async def handle(request: web.Request) -> web.StreamResponse:
            parent = None
            if "traceparent" in request.headers:
                parent = _within(request.headers["traceparent"], ",".join(request.headers.getall("tracestate", ())))
            attributes = {"presence.node": self._node, "http.request.method": request.method}
            with self._tracer.start_as_current_span(name, parent, SpanKind.SERVER, attributes) as span:
                response = await handler(request)
                span.set_attribute("http.response.status_code", response.status)
                if response.status >= _FAILED:
                    span.set_status(StatusCode.ERROR)
                return response

        return handle

    # Parts of a gateway that make spans

    @property
    def tracker(self) -> Callable[..., Tracker]:
        """A `Tracker` whose commands are traced."""
        return partial(_Tracker, self)

    @property
    def steps(self) -> Callable[..., Tracker]:
        """A `Tracker` whose commands are steps of others, as of those in channels."""
        return partial(_Steps, self)

    @property
    def channels(self) -> Callable[..., Channels]:
        """`Channels` whose commands are traced."""
        return partial(_Channels, self)

    @property
    def messages(self) -> Callable[..., Messages]:
        """`Messages` whose commands are traced."""
        return partial(_Messages, self)

    @property
    def cluster(self) -> Callable[..., Cluster]:
        """A `Cluster` whose commands are traced, and with them its inbox."""
        return partial(_Cluster, self)

    def add_to(self, store: Store, bus: Bus, webhooks: Webhooks | None) -> None:
        """Have what is written and sent say what trace it is part of, and what is heard be part of that."""
        store.trace = bus.trace = self.current
        bus.within = self.heard
        if webhooks is not None:
            webhooks.trace, webhooks.notes.trace = self.poster, self.current

    async def close(self, within: float) -> None:
        """Send what has not been sent, for so many seconds at the most. Another's provider is theirs to close."""
        if self._own is not None:
            closing = Thread(target=self._own.shutdown, daemon=True)  # of which the end of the process waits for none
            closing.start()
            if not await asyncio.to_thread(_joined, closing, within):
                _log.warning("not all spans could be sent")

    def _told(
        self, name: str, transition: Transition, begun: int, ended: int, attributes: dict[str, str | int]
    ) -> None:
        about = self._about_change(transition) | attributes
        parent = _within(transition.traceparent or "", transition.tracestate)
        self._tracer.start_span(name, parent, attributes=about, start_time=begun).end(ended)

    def _about_change(self, transition: Transition) -> dict[str, str | int]:
        if PART not in transition.tenant:
            return self._about(transition.tenant, transition.user_id)
        tenant, channel = parse_scope(transition.tenant)
        return self._about(tenant, transition.user_id if channel else None, channel or transition.user_id)

    def _about(self, tenant: str, user_id: str | None, channel: str | None = None) -> dict[str, str | int]:
        about: dict[str, str | int] = {"presence.node": self._node, "presence.tenant": tenant}
        if user_id is not None:
            about["presence.user"] = user_id
        if channel is not None:
            about["presence.channel"] = channel
        return about


class _Steps(Tracker):
    """A tracker whose part of a command, which is another's, is a span of the store's."""

    def __init__(
        self, tracing: Tracing, node: str, store: Store, follower: Follower, clock: Clock, **options: Any
    ) -> None:
        super().__init__(node, store, follower, clock, **options)
        self._tracing = tracing

    async def _fenced(self, command: Callable[[], Awaitable[Commit]]) -> Commit:
        with self._tracing.step("presence.store") as span:
            commit = await super()._fenced(command)
            span.set_attribute("presence.changes", len(commit.transitions))
            return commit

    async def _sweep(self) -> Commit:
        with self._tracing.attempt("presence.sweep") as span:
            commit = await super()._sweep()
            if commit.transitions:
                span.set_attribute("presence.changes", len(commit.transitions))
                span.end()
            return commit


class _Tracker(_Steps):
    """A tracker whose commands are spans, with the store's part of each as a span within."""

    async def connect(self, connection: Connection) -> Commit:
        with self._tracing.span("presence.connect", connection.tenant, connection.user_id):
            return await super().connect(connection)

    async def disconnect(self, connection: Connection, ending: Ending) -> Commit:
        with self._tracing.span("presence.disconnect", connection.tenant, connection.user_id) as span:
            span.set_attribute("presence.reason", ending.value)
            return await super().disconnect(connection, ending)

    async def beat(self, beat: Beat) -> Commit:
        with self._tracing.span("presence.beat", beat.tenant, beat.user_id):
            return await super().beat(beat)

    async def release(self, tenant: str, user_id: str) -> Commit:
        with self._tracing.span("presence.release", tenant, user_id):
            return await super().release(tenant, user_id)

    async def set_status(self, tenant: str, user_id: str, choice: Choice) -> Commit:
        with self._tracing.span("presence.set_status", tenant, user_id):
            return await super().set_status(tenant, user_id, choice)


class _Channels(Channels):
    """Channels whose commands are spans, and each telling of what was said."""

    def __init__(self, tracing: Tracing, *parts: Any, **options: Any) -> None:
        self._tracing = tracing
        super().__init__(*parts, **options)

    async def join(self, subscriber: Subscriber, channel: str, person: Person | None = None, **options: Any) -> Joined:
        user_id = subscriber.user_id if person is None else person.user_id
        with self._tracing.span("presence.join", subscriber.tenant, user_id, channel):
            return await super().join(subscriber, channel, person, **options)

    async def leave(self, subscriber: Subscriber, channel: str) -> bool:
        user_id = subscriber.member_id(channel) or subscriber.user_id
        with self._tracing.span("presence.leave", subscriber.tenant, user_id, channel):
            return await super().leave(subscriber, channel)

    async def end(self, subscriber: Subscriber, ending: Ending) -> None:
        if not subscriber.channels:
            await super().end(subscriber, ending)
            return
        with self._tracing.span("presence.leave_all", subscriber.tenant, subscriber.user_id) as span:
            span.set_attribute("presence.reason", ending.value)
            await super().end(subscriber, ending)

    async def remove(self, tenant: str, channel: str, user_id: str | None = None) -> int:
        with self._tracing.span("presence.remove", tenant, user_id, channel):
            return await super().remove(tenant, channel, user_id)

    async def reauthorize(self, tenant: str, user_id: str) -> None:
        with self._tracing.span("presence.reauthorize", tenant, user_id):
            await super().reauthorize(tenant, user_id)

    async def say(
        self,
        tenant: str,
        channels: Sequence[str],
        event: str,
        data: object,
        *,
        sender: str | None = None,
        **options: Any,
    ) -> Sequence[Said]:
        # What is said in several, as a message is, both sides are told in the last of them.
        with self._tracing.span("presence.say", tenant, sender, channels[-1]) as span:
            span.set_attribute("presence.event", native_name(event))
            return await super().say(tenant, channels, event, data, sender=sender, **options)

    async def say_to_others(self, subscriber: Subscriber, channel: str, event: str, data: Any) -> None:
        user_id = subscriber.member_id(channel) or subscriber.user_id
        with self._tracing.span("presence.say_to_others", subscriber.tenant, user_id, channel):
            await super().say_to_others(subscriber, channel, event, data)

    async def _append(self, drafts: Sequence[Draft], once: str | None, budget: str | None) -> Sequence[Said]:
        with self._tracing.step("presence.store"):
            return await super()._append(drafts, once, budget)

    def _hear(self, said: Said, own: bool) -> int:  # noqa: FBT001 - the log's
        begun = time.time_ns()
        recipients = super()._hear(said, own)
        self._tracing.told(said.tenant, said.sender, said.channel, begun, recipients)
        return recipients

    def publish(self, transitions: Sequence[Transition]) -> None:
        for each in transitions:
            trace = None if each.traceparent is None else Trace(each.traceparent, each.tracestate)
            with nullcontext() if trace is None else self._tracing.part_of(trace):
                super().publish([each])


class _Messages(Messages):
    """Messages whose commands are spans."""

    def __init__(self, tracing: Tracing, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._tracing = tracing

    async def send(self, tenant: str, person: Person, to: To, content: str, **options: Any) -> Any:
        with self._tracing.span("presence.send_message", tenant, person.user_id):
            return await super().send(tenant, person, to, content, **options)

    async def mark_read(self, tenant: str, person: Person, **which: Any) -> int:
        with self._tracing.span("presence.mark_read", tenant, person.user_id):
            return await super().mark_read(tenant, person, **which)

    async def type(self, tenant: str, person: Person, to: To, **options: Any) -> None:
        with self._tracing.span("presence.type", tenant, person.user_id):
            await super().type(tenant, person, to, **options)

    async def report(self, tenant: str, room_id: str, action: str, user_name: str, **options: Any) -> Any:
        with self._tracing.span("presence.report", tenant, None):
            return await super().report(tenant, room_id, action, user_name, **options)


class _Cluster(Cluster):
    """A cluster whose commands are spans, and each telling of a notification."""

    def __init__(self, tracing: Tracing, bus: Any, store: Any, view: Any, inbox: Inbox, *parts: Any) -> None:
        super().__init__(bus, store, view, inbox, *parts)
        self._tracing = tracing
        inbox.trace, inbox.on_handed = tracing.current, tracing.handed

    async def notify(self, tenant: str, user_id: str, event: str, data: object, **options: Any) -> Delivery:
        with self._tracing.span("presence.notify", tenant, user_id) as span:
            delivery = await super().notify(tenant, user_id, event, data, **options)
            span.set_attribute("presence.method", delivery.method)
            return delivery

    def tell(self, tenant: str, user_id: str, event: str, data: object) -> None:
        with self._tracing.span("presence.notify", tenant, user_id):
            super().tell(tenant, user_id, event, data)

    async def disconnect(self, tenant: str, user_id: str, now: int) -> int:
        with self._tracing.span("presence.kick", tenant, user_id):
            return await super().disconnect(tenant, user_id, now)

    async def _put(self, notification: Notification, item_id: str, **options: Any) -> Put:
        with self._tracing.step("presence.store"):
            return await super()._put(notification, item_id, **options)

    def _deliver(self, notification: Notification, *, own: bool) -> int:
        begun = time.time_ns()
        recipients = super()._deliver(notification, own=own)
        self._tracing.told(notification.tenant, notification.user_id, None, begun, recipients)
        return recipients


def _provider(node: str) -> TracerProvider:
    attributes: dict[str, str | int] = {"service.instance.id": node, "service.version": __version__}
    named = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in named:
        attributes["service.name"] = "presence-gateway"
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    match exporter := os.environ.get("OTEL_TRACES_EXPORTER") or "otlp":
        case "otlp":
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        case "none":
            pass
        case _:
            raise ConfigurationError(f"OTEL_TRACES_EXPORTER takes otlp or none; not {exporter!r}")
    return provider


def _trace_of(span: Span) -> Trace | None:
    place = span.get_span_context()
    if not place.is_valid:
        return None
    traceparent = f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"
    return Trace(traceparent, _cut(place.trace_state) or None)


def _cut(state: TraceState) -> str:
    """What goes on of a tracestate: it is kept with each change, so what the specification asks for, and not more.

    Entries of more than 128 characters go first, and then the last ones, which are the oldest.
    """
    entries = [f"{key}={value}" for key, value in state.items()]
    if len(",".join(entries)) > MAX_TRACESTATE:
        entries = [each for each in entries if len(each) <= LONG_ENTRY]
    while len(",".join(entries)) > MAX_TRACESTATE:
        entries.pop()
    return ",".join(entries)


def _within(traceparent: str, tracestate: str | None) -> Context:
    return _propagator.extract({"traceparent": traceparent, "tracestate": tracestate or ""})


def _joined(thread: Thread, within: float) -> bool:
    thread.join(within)
    return not thread.is_alive()
