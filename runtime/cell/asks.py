"""What a cell's handlers ask, and what they answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from understudy.actors import codec
from understudy.actors.actor import ActorSpec
from understudy.actors.errors import AskRejected, AskTimeout, DeclarationError, DecodeError, UnderstudyError
from understudy.actors.event import subject_of
from understudy.actors.handlers import HandlerSpec
from understudy.actors.subjects import matches
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.outputs import enqueue
from understudy.runtime.cell.status import Status
from understudy.runtime.jetstream import asked, headers
from understudy.runtime.jetstream.asking import Asking, decoder_of
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.envelope import event_block, template_of, with_headers
from understudy.runtime.jetstream.puback import PubAck
from understudy.runtime.jetstream.publish_window import PublishWindow
from understudy.runtime.jetstream.replies import Replies

_ASKED_BY = asked.ASKED_BY.encode()
# Of a chain of any length, what a header may hold of it.
MAX_ASKED_BY = 2048


class Asks:
    """Asks and answers for one actor.

    Args:
        client, window: the data path.
        spec: the actor's declaration, options overridden.
        source: says in requests who has published them.
        status: counts.
    """

    def __init__(
        self, client: Connection, window: PublishWindow, spec: ActorSpec, source: str, status: Status
    ) -> None:
        self._replies = Replies(client)
        self._window = window
        self._spec = spec
        self._source = source
        self._status = status
        self._key = spec.options.key_function()
        # What is said of it to those whom it asks, if it handles nothing while it waits.
        self._blocked = _blocked(spec, source)
        self._asking = Asking(client, lambda: status.counts.count("late_replies"))

    async def ask(
        self,
        delivery: HeldDelivery,
        event: object,
        expects: type,
        subject: str | None,
        timeout_seconds: float,
        idempotency_key: str,
    ) -> Any:
        """Ask within the handling of a delivery, as `Context.ask` does."""
        where = subject or subject_of(event)
        self._check_not_itself(delivery, event, where)
        template = "" if subject else template_of(type(event))
        span = None if delivery.span is None else delivery.span.asking(where, template)

        above = headers.find(delivery.header_block, _ASKED_BY) or ""
        asked_by = ";".join(filter(None, (above, self._blocked)))[:MAX_ASKED_BY]

        async def publish(message_id: str, lines: Sequence[tuple[str, str]]) -> asyncio.Future[PubAck]:
            trace = delivery.trace
            if delivery.span is not None:
                delivery.span.publishes(type(event))
            block = event_block(
                type(event),
                message_id,
                self._source,
                traceparent=trace.traceparent,
                tracestate=trace.state,
            )
            more = [*lines, (asked.ASKED_BY, asked_by)] if asked_by else lines
            message = where, codec.encode(event), with_headers(block, more)
            confirmed = await enqueue(self._window, message, span)
            self._status.count("published")
            self._status.counts.count("asks")
            return confirmed

        with span or nullcontext():
            outcome = ""
            try:
                answer = await self._asking.ask(
                    where,
                    publish,
                    decoder_of(expects),
                    timeout_seconds=timeout_seconds,
                    until=asked.deadline_of(delivery.header_block),
                    idempotency_key=idempotency_key,
                )
                outcome = "answered"
            except AskTimeout as error:
                outcome = "timeout"
                cycle = _cycle(above, where)
                if not cycle:
                    raise
                raise AskTimeout(f"{error}; {cycle}", subject=where) from error
            except AskRejected:
                outcome = "rejected"
                raise
            except UnderstudyError:
                outcome = "failed"
                raise
            finally:
                # What is cancelled with its handler has come to nothing.
                if outcome:
                    self._status.counts.count(f"asks_{outcome}")
        return answer

    def answer(self, delivery: HeldDelivery, reply: type, result: object) -> asked.Reply | None:
        """Return a handler's answer, ready to be sent; None if nobody has asked.

        Args:
            delivery: what was handled.
            reply: the type that the handler declares.
            result: what it has returned.

        Raises:
            TypeError: it is of another type.
            EncodeError, PublishError: it can't be put on the wire, or is too large.
        """
        if not isinstance(result, reply):
            returned = "None" if result is None else type(result).__qualname__
            raise TypeError(f"the handler declares reply={reply.__qualname__}, but returned {returned}")
        request = delivery.header_block
        if asked.REPLY_TO.encode() not in request:
            return None
        try:
            as_json = codec.is_json(delivery.body, delivery.content_type)
        except DecodeError:
            # A handler of bytes takes whatever comes.
            as_json = False
        answer = asked.encode_answer(request, result, as_json=as_json)
        if answer is not None:
            self._window.check(*answer)
        return answer

    async def send(self, delivery: HeldDelivery, reply: asked.Reply) -> None:
        """Send an answer: when all is published that belongs to it, and before the ack."""
        if delivery.span is not None:
            delivery.span.note("reply", outcome=asked.ANSWERED)
        await self._replies.send(reply, asked.deadline_of(delivery.header_block))

    async def refuse(self, delivery: HeldDelivery, reason: str, text: str) -> None:
        """Tell whoever has asked that there is no answer, and why."""
        if not answers(delivery.handler):
            return
        refusal = asked.encode_refusal(delivery.header_block, reason, text)
        if refusal is not None:
            if delivery.span is not None:
                delivery.span.note("reply", outcome=reason)
            await self._replies.send(refusal, asked.deadline_of(delivery.header_block))

    async def refuse_if_late(
        self, delivery: HeldDelivery, delay_seconds: float, reason: str, text: str
    ) -> None:
        """Tell whoever has asked that there is no answer, if the next run begins beyond the deadline."""
        if is_expired(delivery, time.time() + delay_seconds):
            await self.refuse(delivery, reason, text)

    def _check_not_itself(self, delivery: HeldDelivery, event: object, subject: str) -> None:
        """Raise if this very run holds up the answer.

        Raises:
            DeclarationError: the actor answers it itself, and may not begin before this run has ended.
        """
        if not answers(self._spec.route(subject)):
            return
        why = _one_at_a_time(self._spec)
        if not why and self._key is not None and (self._key(event),) == delivery.key:
            why = "handles one event of a key at a time"
        if not why:
            return
        raise DeclarationError(
            f"ctx.ask: {subject!r} is answered by {self._spec.name!r} itself, which {why} and would wait for "
            f"itself; call the method, or ask another actor"
        )


def _one_at_a_time(spec: ActorSpec) -> str:
    """Return why an actor handles nothing while one of its handlers runs; empty if it does."""
    options = spec.options
    if options.concurrency == 1 or options.ordered:
        return "handles one event at a time"
    if options.state is not None and options.key is None:
        return "handles one event at a time, since it has one state"
    return ""


def _blocked(spec: ActorSpec, source: str) -> str:
    filters = [handler.filter for handler in spec.handlers if answers(handler)]
    return " ".join([source, *filters]) if filters and _one_at_a_time(spec) else ""


def _cycle(asked_by: str, subject: str) -> str:
    """Return who it is that answers a subject and waits for this very answer; empty if nobody."""
    for entry in asked_by.split(";"):
        name, *filters = entry.split(" ")
        if any(matches(pattern, subject) for pattern in filters):
            return f"{name} answers it, one event at a time, and waits for the answer to this one: a cycle"
    return ""


def answers(handler: HandlerSpec | None) -> bool:
    """Return whether a handler answers."""
    return handler is not None and handler.reply is not None


def is_expired(delivery: HeldDelivery, at: float | None = None) -> bool:
    """Return whether nobody waits for the answer of a delivery any more.

    Args:
        delivery: which.
        at: when, in seconds since 1970; now if absent.
    """
    if not answers(delivery.handler):
        return False
    deadline = asked.deadline_of(delivery.header_block)
    return deadline is not None and deadline <= (time.time() if at is None else at)


def lateness(delivery: HeldDelivery) -> dict[str, float]:
    """Return what the log says of a delivery that has expired: how late it is, and how long it was stored.

    Where it was stored for less than whoever has asked waits, somebody's clock is wrong.
    """
    now = time.time()
    deadline = asked.deadline_of(delivery.header_block) or now
    return {
        "late_seconds": round(now - deadline, 3),
        "stored_seconds_ago": round(now - delivery.timestamp / 1e9, 3),
    }
