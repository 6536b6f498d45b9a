"""A steady load of numbered events, each confirmed by its stream before the next of its key."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import nats.errors

from understudy.actors import codec
from understudy.actors.errors import PublishError
from understudy.actors.event import Event, subject_of
from understudy.runtime.jetstream.publisher import Publisher


async def publish_confirmed(
    publisher: Publisher, event: Event, message_id: str, headers: Mapping[str, str] | None = None
) -> None:
    """Publish an event and try again, under the same id, until a stream has confirmed it."""
    body, all_headers = codec.encode(event), {"Content-Type": codec.MSGPACK, "Nats-Msg-Id": message_id}
    while True:
        try:
            if headers is None:
                await publisher.publish(event, message_id=message_id)
            else:
                await publisher.publish_raw(subject_of(event), body, {**all_headers, **headers})
            return
        except PublishError as error:
            if "no stream confirmed" not in str(error) and not isinstance(error.__cause__, nats.errors.Error):
                raise


class Load:
    """Publishes numbers from 0 on, from a thread of its own, for the length of a `with` block.

    Number n has the key n modulo `keys`, so that the stream has each key's numbers in order whatever has to
    be tried again. A key whose event isn't confirmed in time is late, and doesn't catch up.

    Args:
        url: the broker's.
        make: makes the event of a number.
        per_second: how many events, of all keys together.
        keys: how many keys there are.
        headers: that each event has; none if None.
    """

    def __init__(
        self,
        url: str,
        make: Callable[[int], Event],
        *,
        per_second: float,
        keys: int,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._url = url
        self._headers = headers
        self._make = make
        self._period_seconds = keys / per_second
        self._rounds = [0] * keys
        self._begun = 0
        self._last: int | None = None
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    @property
    def published(self) -> int:
        """How many events are confirmed."""
        return sum(self._rounds)

    def finish(self) -> int:
        """Publish until every key has equally many, and return how many events there are in all."""
        self._ending.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        assert len(set(self._rounds)) == 1, self._rounds
        return self.published

    def _run(self) -> None:
        try:
            asyncio.run(self._publish())
        except BaseException as error:
            self._failure = error

    async def _publish(self) -> None:
        async with Publisher.connect(self._url) as publisher:
            await asyncio.gather(*(self._publish_key(publisher, key) for key in range(len(self._rounds))))

    async def _publish_key(self, publisher: Publisher, key: int) -> None:
        keys = len(self._rounds)
        now = asyncio.get_running_loop().time
        due = now() + self._period_seconds * key / keys
        while True:
            await asyncio.sleep(max(0.0, due - now()))
            due = max(due + self._period_seconds, now())
            if self._rounds[key] == self._last_round():
                return
            number = key + keys * self._rounds[key]
            self._begun = max(self._begun, self._rounds[key] + 1)
            await publish_confirmed(publisher, self._make(number), f"n{number}", self._headers)
            self._rounds[key] += 1

    def _last_round(self) -> int | None:
        """How many rounds there are in all; None while there is no end to them."""
        if self._last is None and self._ending.is_set():
            self._last = self._begun
        return self._last
