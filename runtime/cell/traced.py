"""The spans of a cell's deliveries: begun before the pipeline, ended when it is known what becomes of them.

A delivery that isn't sampled costs one look at its headers, and nothing is made for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from understudy.actors.event import EventSpec
from understudy.actors.handlers import HandlerSpec
from understudy.runtime.cell.cellfile import Identity
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.outcomes import SETTLED, Again, Finishing, Outcome, Settled
from understudy.runtime.cell.pipeline import Pipeline
from understudy.runtime.jetstream import headers
from understudy.runtime.telemetry import conventions as names
from understudy.runtime.telemetry.otel import OpenTelemetry
from understudy.runtime.telemetry.sampling import Sampler
from understudy.runtime.telemetry.spans import Attributes, MemberSpan, ProcessSpan, begin_process
from understudy.runtime.telemetry.trace import begin_trace, read_trace
from understudy.runtime.telemetry.tracing import Relation

Handle = Callable[[HeldDelivery, Deadline], Awaitable[Outcome | Finishing]]


class Tracer:
    """Begins the spans of one cell's deliveries, and ends them.

    Args:
        otel: makes them.
        identity: whose deliveries these are.
        sampler: says which are traced.
        relation: whether a process span is below the publisher's, or only linked to it.
        server: returns host and port of the broker, or None.
    """

    def __init__(
        self,
        otel: OpenTelemetry,
        identity: Identity,
        sampler: Sampler,
        relation: Relation,
        server: Callable[[], tuple[str, int] | None],
    ) -> None:
        self._otel = otel
        self._sampler = sampler
        self._is_parent = relation == "parent"
        self._server = server
        # By the handler's method.
        self._templates: dict[str, str] = {}
        self._attributes: Attributes = {
            names.SYSTEM: names.NATS,
            names.CONSUMER_GROUP: identity.durable,
        }

    def attach(self, pipeline: Pipeline) -> None:
        """Have a pipeline's deliveries traced."""
        pipeline.handle = Traced(self, pipeline.handle)
        if pipeline.batches is not None:
            pipeline.batches.tracer = self
        if pipeline.stateful is not None:
            pipeline.stateful.tracer = self

    def samples(self, delivery: HeldDelivery) -> bool:
        """Return whether a delivery is traced."""
        return self._sampler.samples(delivery.header_block, delivery.sequence)

    def begin(self, delivery: HeldDelivery) -> ProcessSpan:
        """Begin the span of one attempt at a delivery that is traced; it is the delivery's until its end."""
        remote = read_trace(delivery.header_block)
        attributes = self._of(delivery)
        if delivery.is_taken_over:
            attributes[names.TAKEN_OVER] = True
        # The trace that begins with an event has its id in every actor and at every attempt.
        begun = "" if remote else begin_trace(delivery.stream, delivery.sequence, delivery.timestamp).trace_id
        span = begin_process(
            self._otel,
            attributes,
            self._template(delivery.handler),
            [remote] if remote else [],
            is_child=self._is_parent and remote is not None,
            trace_id=begun,
        )
        delivery.trace_with(span)
        return span

    def begin_batch(self, members: Sequence[HeldDelivery]) -> ProcessSpan | None:
        """Begin the span of a batch, None if none of its members is traced.

        It is linked to each that is. A single member's is as any delivery's.
        """
        traced = [member for member in members if self.samples(member)]
        if not traced:
            return None
        if len(members) == 1:
            span = self.begin(traced[0])
            span.set(names.BATCH_COUNT, 1)
            return span
        remotes = [read_trace(member.header_block) for member in traced]
        batch = begin_process(
            self._otel,
            self._common() | {names.BATCH_COUNT: len(members)},
            self._template(members[0].handler),
            [remote for remote in remotes if remote is not None],
            is_child=False,
        )
        for member, remote in zip(traced, remotes, strict=True):
            publisher = remote if self._is_parent else None
            member.span = MemberSpan(self._otel, batch, self._naming(member), publisher)
        return batch

    def end(self, delivery: HeldDelivery, outcome: object) -> None:
        """End a delivery's span if it has one.

        Args:
            delivery: which.
            outcome: what became of it; if it stays, and nothing happened that is to be known, its span is
                forgotten, since its handler hasn't run.
        """
        span = delivery.span
        if span is None:
            return
        delivery.span = None
        if outcome is not SETTLED and not span.is_noted:
            return
        if not span.has_failed:
            span.set(names.ATTEMPT, delivery.attempt)
        if outcome is SETTLED and not span.is_settling:
            span.settling("ack").end()
        span.end()

    def end_batch(self, batch: ProcessSpan, members: Iterable[HeldDelivery], outcome: object) -> None:
        """End a batch's span, and forget its members'."""
        noted = batch.is_noted
        for member in members:
            if member.span is not None:
                noted = noted or member.span.is_noted
                member.span = None
        if outcome is SETTLED or noted:
            batch.end()

    def links_to(self, deliveries: Iterable[HeldDelivery]) -> list[Any]:
        """Return links to the spans of what is traced."""
        return [delivery.span.link() for delivery in deliveries if delivery.span is not None]

    def _template(self, handler: HandlerSpec | None) -> str:
        if handler is None:
            return ""
        template = self._templates.get(handler.method)
        if template is None:
            template = self._templates[handler.method] = template_of(handler)
        return template

    def _common(self) -> dict[str, str | int | float | bool]:
        attributes = dict(self._attributes)
        server = self._server()
        if server is not None:
            attributes[names.SERVER_ADDRESS], attributes[names.SERVER_PORT] = server
        return attributes

    def _of(self, delivery: HeldDelivery) -> dict[str, str | int | float | bool]:
        attributes = self._common()
        attributes.update(self._naming(delivery))
        attributes[names.DESTINATION_NAME] = delivery.subject
        if delivery.delivery_count > 1:
            attributes[names.DELIVERY_COUNT] = delivery.delivery_count
        return attributes

    def _naming(self, delivery: HeldDelivery) -> dict[str, str | int | float | bool]:
        message_id = headers.find(delivery.header_block, b"Nats-Msg-Id")
        named: dict[str, str | int | float | bool] = {names.SEQUENCE: delivery.sequence}
        return named if message_id is None else {names.MESSAGE_ID: message_id, **named}


class Traced:
    """Handles deliveries one by one, those that are sampled within a span.

    Args:
        tracer: the cell's.
        handle: handles one.
    """

    def __init__(self, tracer: Tracer, handle: Handle) -> None:
        self._tracer = tracer
        self._samples = tracer._sampler.samples
        self._handle = handle

    def __call__(self, delivery: HeldDelivery, deadline: Deadline) -> Awaitable[Outcome | Finishing]:
        """Handle a delivery and settle it, or say why it stays."""
        if self._samples(delivery.header_block, delivery.sequence):
            return self._in_span(delivery, deadline)
        return self._handle(delivery, deadline)

    async def _in_span(self, delivery: HeldDelivery, deadline: Deadline) -> Outcome | Finishing:
        tracer = self._tracer
        tracer.begin(delivery)
        outcome: Outcome | Finishing | None = None
        try:
            outcome = await self._handle(delivery, deadline)
        finally:
            if type(outcome) is Finishing:

                def finished(settled: asyncio.Future[Settled | Again]) -> None:
                    tracer.end(delivery, None if settled.cancelled() else settled.result())

                outcome.settled.add_done_callback(finished)
            else:
                tracer.end(delivery, outcome)
        return outcome


def template_of(handler: HandlerSpec) -> str:
    """Return the template of the subjects that a handler takes: its event's, or its filter."""
    spec = getattr(handler.type, "__understudy__", None)
    if isinstance(spec, EventSpec) and spec.filter == handler.filter:
        return spec.subject
    return handler.filter
