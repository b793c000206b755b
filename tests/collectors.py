"""A receiver of spans, by OTLP over HTTP, and of webhooks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from receivers import HOOK_SECRET
from redis_servers import RedisServer, fresh_prefix


class Span:
    """What of a span these tests look at."""

    def __init__(self, name: str, trace_id: str, span_id: str, parent: str, attributes: dict[str, Any]) -> None:
        self.name = name
        self.trace_id = trace_id
        self.id = span_id
        self.parent = parent
        self.attributes = attributes
        self.node = attributes.get("presence.node")

    def __repr__(self) -> str:
        return f"{self.name} {self.trace_id[:6]} {self.id} < {self.parent} {self.attributes}"


class Collector:
    """A receiver of OTLP over HTTP, and of webhooks with their headers."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.webhooks: list[dict[str, str]] = []

    async def traces(self, request: web.Request) -> web.Response:
        message = ExportTraceServiceRequest.FromString(await request.read())
        for resource in message.resource_spans:
            self.services |= {
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            }
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {each.key: each.value.string_value or each.value.int_value for each in span.attributes}
                    self.spans.append(
                        Span(span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), attributes)
                    )
        return web.Response(content_type="application/x-protobuf")

    async def webhook(self, request: web.Request) -> web.Response:
        self.webhooks.append(dict(request.headers) | {"type": (await request.json())["type"]})
        return web.Response(status=204)

    def of_trace(self, trace_id: str, name: str, **attributes: Any) -> list[Span]:
        """The spans of one trace, as `of` finds them."""
        return [span for span in self.of(name, **attributes) if span.trace_id == trace_id]

    def sent(self, trace_id: str) -> list[dict[str, str]]:
        """The headers, and the type, of the webhooks of one trace."""
        return [each for each in self.webhooks if each.get("traceparent", "").split("-")[1:2] == [trace_id]]

    def of(self, name: str, **attributes: Any) -> list[Span]:
        """The spans of a name and of these attributes, ``__`` for a dot."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return [span for span in self.spans if span.name == name and wanted.items() <= span.attributes.items()]


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", made.traces)
    app.router.add_post("/hook", made.webhook)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = "http://{}:{}".format(*runner.addresses[0][:2])
        yield made
    finally:
        await runner.cleanup()


def kept_spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of an application that has a provider of its own, from now on."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


def named(kept: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """Those of a name that have ended."""
    return [span for span in kept.get_finished_spans() if span.name == name]


def traces_of(kept: InMemorySpanExporter, name: str) -> list[str]:
    """The ids of the traces that spans of a name are of."""
    return [format(span.context.trace_id, "032x") for span in named(kept, name) if span.context is not None]


def traced(told: Collector, redis: RedisServer) -> dict[str, str]:
    """The variables of nodes that tell a collector of their spans, and send it their webhooks."""
    return {
        "TRACING": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": told.url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "REDIS_URL": redis.url,
        "REDIS_PREFIX": fresh_prefix(),
        "PRESENCE_WEBHOOK_URL": f"{told.url}/hook",
        "PRESENCE_WEBHOOK_SECRET": HOOK_SECRET,
        "PRESENCE_OFFLINE_GRACE": "0.2",
    }
