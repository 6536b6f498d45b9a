"""What a handler publishes, under ids that a repeated run makes again."""

from __future__ import annotations

from collections.abc import Iterable

from understudy.actors import codec
from understudy.actors.event import subject_of
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.jetstream.envelope import event_headers, type_name
from understudy.runtime.jetstream.publisher import PublishWindow


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
        name = type_name(type(event))
        number = self._counts[name] = self._counts.get(name, 0) + 1
        message_id = f"{self._prefix}.{self._delivery.sequence}.{name}.{number}"
        headers = event_headers(
            type(event), message_id, self._source, traceparent=self._delivery.trace.traceparent
        )
        await self._window.publish(subject or subject_of(event), codec.encode(event), headers)
        self.sent += 1

    async def send_all(self, collected: Iterable[tuple[object, str | None]], result: object) -> None:
        """Publish what a handler has collected, then what it has returned: nothing, one event, or several.

        Raises:
            EncodeError, PublishError: as `send`.
        """
        for event, subject in collected:
            await self.send(event, subject)
        if result is None:
            return
        for event in result if isinstance(result, list | tuple) else (result,):
            await self.send(event)
