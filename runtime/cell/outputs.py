"""What a handler publishes, under ids that a repeated run makes again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from understudy.actors import codec
from understudy.actors.errors import EncodeError, PublishError
from understudy.actors.event import subject_of
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.jetstream.envelope import event_block, type_name
from understudy.runtime.jetstream.puback import PubAck
from understudy.runtime.jetstream.publish_window import PublishWindow


class Outputs:
    """Publishes the events of one handler run.

    An event's id is made of durable, input stream's creation time, input sequence, event type and the
    count of that type, so that the duplicate window drops what a rerun publishes again.

    Attributes:
        sent: how many were confirmed.
    """

    __slots__ = ("_counts", "_delivery", "_prefix", "_source", "_window", "sent")

    def __init__(self, window: PublishWindow, delivery: HeldDelivery, prefix: str, source: str) -> None:
        self._window = window
        self._delivery = delivery
        self._prefix = prefix
        self._source = source
        self._counts: dict[str, int] = {}
        self.sent = 0

    async def send(self, event: object, subject: str | None = None) -> None:
        """Publish an event and return when its stream has it.

        Args:
            event: an Event, or what the codec takes where `subject` is given.
            subject: overrides the event's own.

        Raises:
            EncodeError: it can't be put on the wire.
            PublishError: it was not confirmed.
        """
        await self._window.publish(*self._encode(event, subject))
        self.sent += 1

    async def send_all(self, collected: Iterable[tuple[object, str | None]], result: object) -> None:
        """Publish what a handler has collected, then what it has returned: nothing, one event, or several.

        They are written in this order, and then confirmed together.

        Raises:
            EncodeError: one of them can't be put on the wire; then none is.
            PublishError: one of them was not confirmed, the first that wasn't; others may have been.
        """
        events = list(collected)
        if isinstance(result, list | tuple):
            events += [(event, None) for event in result]
        elif result is not None:
            events.append((result, None))
        messages = [self._encode(event, subject) for event, subject in events]
        if len(messages) == 1:
            await self._window.publish(*messages[0])
            self.sent += 1
        elif messages:
            await self._publish_together(messages)

    def _encode(self, event: object, subject: str | None) -> tuple[str, bytes, bytes]:
        name = type_name(type(event))
        number = self._counts[name] = self._counts.get(name, 0) + 1
        message_id = f"{self._prefix}.{self._delivery.sequence}.{name}.{number}"
        block = event_block(
            type(event), message_id, self._source, traceparent=self._delivery.trace.traceparent
        )
        return subject or subject_of(event), codec.encode(event), block

    async def _publish_together(self, messages: list[tuple[str, bytes, bytes]]) -> None:
        confirmed: list[asyncio.Future[PubAck]] = []
        unsent: EncodeError | PublishError | None = None
        for message in messages:
            try:
                confirmed.append(await self._window.enqueue(*message))
            except (EncodeError, PublishError) as error:
                unsent = error
                break
        # All of them, since they are on their way: a rerun finds them in the stream, or not.
        answers = await asyncio.gather(*confirmed, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        self.sent += len(answers) - len(refused)
        for problem in (*refused, unsent):
            if problem is not None:
                raise problem
