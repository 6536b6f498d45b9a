"""Replay: dead letters go back to where they came from, each for the actor that gave it up.

A letter is removed only when the original's stream has confirmed the replay. Whatever ends a replay in
between, the next one publishes it under the same id, which the stream drops within its duplicate window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import nats.errors

from understudy.actors.errors import BrokerError, EncodeError, PublishError
from understudy.actors.subjects import covers
from understudy.runtime.jetstream.dead_letters import REPLAY_FOR
from understudy.runtime.jetstream.event_id import ORIGINAL_ID, event_id
from understudy.runtime.jetstream.letter_stream import LetterStream
from understudy.runtime.jetstream.originals import Originals
from understudy.runtime.jetstream.puback import PubAck
from understudy.runtime.jetstream.publish_window import PublishWindow
from understudy.runtime.jetstream.stored_letters import StoredLetter

IN_FLIGHT = 256

# What the original's publisher asked of the server, or the server wrote itself; none of it holds for a
# replay. An id would be dropped as a repeat, and what was expected of the stream is no longer so. A lifetime
# began with the original, so that what is replayed on purpose might be gone before it is handled.
# A rollup would remove all that the stream has stored since.
# A batch, a schedule, a counter's increment and a trace of the message's way were the original's alone.
_NOT_RESTORED = (
    "nats-msg-id",
    "nats-expected-",
    "nats-ttl",
    "nats-rollup",
    "nats-batch-",
    "nats-schedule",
    "nats-incr",
    "nats-counter-",
    "nats-trace-",
    "nats-marker-",
    "nats-required-api-level",
    "nats-pin-id",
    "nats-stream",
    "nats-subject",
    "nats-sequence",
    "nats-time-stamp",
    "nats-num-pending",
    "nats-last-sequence",
    "nats-upto-sequence",
)


class Unreplayable(Exception):
    """A letter can't be replayed; the text says why."""


@dataclass
class ReplayCounts:
    """What became of the letters.

    Attributes:
        replayed: stored again.
        repeated: of an earlier replay that had stored them, but not removed the letter.
    """

    replayed: int = 0
    repeated: int = 0


class Replay:
    """Publishes dead letters in the order in which they are given, many at a time.

    Args:
        letters: the stream that they are removed from.
        keep: leave them there.
        failed: called with a letter's id and the problem.

    Attributes:
        counts: what became of those that are finished.
    """

    def __init__(self, letters: LetterStream, *, keep: bool, failed: Callable[[int, str], None]) -> None:
        self._letters = letters
        self._keep = keep
        self._failed = failed
        self.counts = ReplayCounts()
        self._window = PublishWindow(letters.client)
        self._running: set[asyncio.Task[None]] = set()
        self._originals = Originals(letters.client)

    async def open(self) -> None:
        """Begin to hear what streams confirm; before the first `put`."""
        await self._window.open()

    async def put(self, letter: StoredLetter) -> None:
        """Publish a letter, and return when the next may be; how it went, `counts` and `failed` say.

        Args:
            letter: read with its body.

        Raises:
            BrokerError: the server did not answer what had to be known first.
        """
        try:
            body = await self.body(letter)
            confirmed = await self._window.enqueue(letter.subject, body, self._headers(letter))
        except (Unreplayable, PublishError, EncodeError) as error:
            self._failed(letter.id, str(error))
            return
        task = asyncio.create_task(self._finish(letter.id, confirmed))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        while len(self._running) >= IN_FLIGHT:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    async def finish(self) -> None:
        """Return when all that was published is confirmed and removed, or has failed."""
        while self._running:
            await asyncio.wait(self._running)

    async def check(self, letter: StoredLetter) -> None:
        """Find out whether a letter could be replayed.

        Raises:
            Unreplayable: it couldn't.
            BrokerError: the server did not answer.
        """
        if not letter.subject or not letter.stream:
            raise Unreplayable("it doesn't say where it came from, so this is no dead letter of ours")
        stream = await self._originals.stream(letter.stream)
        if stream is None:
            raise Unreplayable(f"its stream {letter.stream} is gone")
        if not _takes(stream["config"].get("subjects") or [], letter.subject):
            raise Unreplayable(f"stream {letter.stream} doesn't take {letter.subject} any more")
        consumer = await self._originals.consumer(letter.stream, letter.durable)
        if consumer is None:
            raise Unreplayable(
                f"consumer {letter.durable} of stream {letter.stream} is gone, so that nobody would "
                "handle it; 'understudy run' makes it anew"
            )
        config = consumer["config"]
        if not _takes(config.get("filter_subjects") or [config.get("filter_subject") or ">"], letter.subject):
            raise Unreplayable(
                f"consumer {letter.durable} doesn't take {letter.subject} any more, so that nobody would "
                "handle it"
            )

    async def body(self, letter: StoredLetter) -> bytes:
        """Return the body that a letter's replay has.

        Raises:
            Unreplayable: the letter can't be replayed.
            BrokerError: the server did not answer.
        """
        await self.check(letter)
        body = await self._originals.body(letter)
        if body is None:
            raise Unreplayable(
                f"its body was left out, and stream {letter.stream} no longer has sequence {letter.sequence}"
            )
        return body

    def _headers(self, letter: StoredLetter) -> dict[str, str]:
        original = letter.original_headers
        restored = {
            name: value for name, value in original.items() if not name.lower().startswith(_NOT_RESTORED)
        }
        # By whatever a handler may have known the event.
        key = event_id(original.get, letter.stream, letter.stream_created, letter.sequence)
        return {
            # First of all, so that an actor knows it by the block's beginning.
            REPLAY_FOR: letter.durable,
            **{name: value for name, value in restored.items() if name not in (REPLAY_FOR, ORIGINAL_ID)},
            ORIGINAL_ID: key,
            "Nats-Msg-Id": f"{self._letters.name}.{self._letters.created}.{letter.id}",
            # Should the subject become another stream's this very moment.
            "Nats-Expected-Stream": letter.stream,
        }

    async def _finish(self, number: int, confirmed: asyncio.Future[PubAck]) -> None:
        try:
            ack = await confirmed
        except PublishError as error:
            self._failed(number, str(error))
            return
        try:
            if not self._keep:
                await self._letters.remove(number)
        except (BrokerError, nats.errors.Error) as error:
            self._failed(number, f"it was replayed and is still here, since it couldn't be removed: {error}")
            return
        if ack.duplicate:
            self.counts.repeated += 1
        else:
            self.counts.replayed += 1


def _takes(filters: Iterable[str], subject: str) -> bool:
    return any(covers(wide, subject) for wide in filters)
