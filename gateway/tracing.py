"""Traces by OpenTelemetry, for ``TRACING=true``: the one module that imports it, and nothing imports this otherwise.

A command is one trace, wherever it goes on::

    POST /presence/offline          where it came by HTTP, and part of the caller's trace where they sent a traceparent
      presence.release              the command, on the node that was given it
        presence.store              in the store; what it commits has its traceparent, on the log and in the outbox
          presence.log              on each node: from the commit to its view
          presence.fanout           on each node that has whom to tell
          presence.webhook          on the node that sends: each attempt, whose own traceparent the endpoint gets

What a sweep commits is a trace of its own; one that commits nothing leaves none.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.errors import ConfigurationError
from gateway.presence.tracker import Tracker
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from aiohttp import web
    from aiohttp.typedefs import Handler
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from gateway.presence.clock import Clock
    from gateway.presence.follower import Follower
    from gateway.presence.model import Beat, Choice, Connection, Ending, Transition
    from gateway.presence.store import Commit, Store
    from gateway.webhooks.event import Message
    from gateway.webhooks.post import Answer, Poster

_log = structlog.get_logger(__name__)

_MS = 1_000_000
"""Nanoseconds, which OpenTelemetry counts, in one of the milliseconds that presence goes by."""

_FAILED = 500
"""HTTP statuses from here on are the gateway's fault, and mark a span as failed."""

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
    def span(self, name: str, tenant: str, user_id: str) -> Iterator[Span]:
        """A span of what is done for a user, within the one that is under way."""
        with self._tracer.start_as_current_span(name, attributes=self._about(tenant, user_id)) as span:
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

    @staticmethod
    def current() -> str | None:
        """The traceparent of the span that is under way; None for none."""
        return _traceparent(trace.get_current_span())

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
                "presence.webhook", _within(message.traceparent), SpanKind.CLIENT, attributes
            ) as span:
                answer = await poster(message.within(_traceparent(span)), now)
                if answer.reason is not None:
                    span.set_status(StatusCode.ERROR, answer.reason)
                return answer

        return post

    def around(self, handler: Handler, name: str) -> Handler:
        """Handle a request within a span, which is part of the caller's trace, if they say that there is one."""

        async def handle(request: web.Request) -> web.StreamResponse:
            parent = _within(request.headers["traceparent"]) if "traceparent" in request.headers else None
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
        about = self._about(transition.tenant, transition.user_id) | attributes
        parent = _within(transition.traceparent or "")
        self._tracer.start_span(name, parent, attributes=about, start_time=begun).end(ended)

    def _about(self, tenant: str, user_id: str) -> dict[str, str | int]:
        return {"presence.node": self._node, "presence.tenant": tenant, "presence.user": user_id}


class _Tracker(Tracker):
    """A tracker whose commands are spans, with the store's part of each as a span within."""

    def __init__(
        self, tracing: Tracing, node: str, store: Store, follower: Follower, clock: Clock, **options: Any
    ) -> None:
        super().__init__(node, store, follower, clock, **options)
        self._tracing = tracing

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


def _traceparent(span: Span) -> str | None:
    context = span.get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _within(traceparent: str) -> Context:
    return _propagator.extract({"traceparent": traceparent})


def _joined(thread: Thread, within: float) -> bool:
    thread.join(within)
    return not thread.is_alive()
