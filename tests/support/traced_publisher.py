"""A program that publishes: `python -m support.traced_publisher URL ENDPOINT RATIO`.

It has an OpenTelemetry of its own, which samples by RATIO, or with `-` none at all.
"""

from __future__ import annotations

import asyncio
import sys

from understudy import Event
from understudy.runtime.jetstream.publisher import Publisher


class Entered(Event, subject="traced.{region}.entered"):
    """As of `support.traced_app`, which loads OpenTelemetry."""

    region: str
    number: int


EVENT = Entered(region="north", number=1)
GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def publish(url: str) -> None:
    """Publish in every way; the last time with a context of its own."""
    async with Publisher.connect(url) as publisher:
        await publisher.publish(EVENT, message_id="one")
        await (await publisher.publish_async(EVENT, message_id="two"))
        await publisher.publish_raw("traced.raw", b"{}", {"Nats-Msg-Id": "three"})
        await publisher.publish_raw("traced.raw", b"{}", {"Nats-Msg-Id": "four", "Traceparent": GIVEN})


def main(url: str, endpoint: str, ratio: str) -> None:
    """Publish within a span, if there are any."""
    if ratio == "-":
        asyncio.run(publish(url))
        return
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

    provider = TracerProvider(sampler=TraceIdRatioBased(float(ratio)))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")))
    trace.set_tracer_provider(provider)
    with trace.get_tracer("program").start_as_current_span("work") as span:
        print(f"{span.get_span_context().trace_id:032x}")
        asyncio.run(publish(url))
    provider.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
