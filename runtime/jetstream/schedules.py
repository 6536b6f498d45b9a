"""Delayed publishing by the server's message schedules: ADR-51.

A delayed event is stored at once, under a subject of its own in the stream that holds its target, with
headers that say when and where to. When it is due the server stores it under its own subject, and drops the
first. One subject holds one schedule, so a timer that is set again takes the place of the one before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from nats.aio.client import Client

from understudy.actors.errors import EncodeError
from understudy.actors.subjects import check_literal
from understudy.runtime.jetstream import api
from understudy.runtime.specs import StreamSpec
from understudy.runtime.stream import holds, timer_subjects

OLDEST_SERVER = (2, 12)
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


def too_old(client: Client) -> str:
    """Return the server's version if it knows no schedules, else an empty text."""
    version = client.connected_server_version
    return str(version) if (version.major, version.minor) < OLDEST_SERVER else ""


class Timers:
    """The timers of one actor.

    Args:
        client: a connection.
        streams: the app's.
        durable: names the actor's timers in their streams.
    """

    def __init__(self, client: Client, streams: Sequence[StreamSpec], durable: str) -> None:
        self._client = client
        self._streams = [stream for stream in streams if stream.timers]
        self._durable = durable

    def plan(
        self, target: str, delay_seconds: float, timer: str, now: float
    ) -> tuple[str, list[tuple[str, str]]]:
        """Return the subject that holds a schedule, and the headers that make it one.

        Args:
            target: where the event is to be stored.
            delay_seconds: when, counted from now.
            timer: by which it is known among the actor's.
            now: seconds since 1970.

        Raises:
            EncodeError: no stream of the app can hold it, or not for so long.
        """
        check_literal(target)
        stream = next((one for one in self._streams if holds(one, [target])), None)
        if stream is None:
            raise EncodeError(
                f"an event for {target!r} can't be delayed: no stream of the app that holds it has timers; "
                f"declare it as Stream(…, timers=True)"
            )
        if stream.max_age_seconds is not None and delay_seconds >= stream.max_age_seconds:
            raise EncodeError(
                f"an event for {target!r} can't be delayed by {delay_seconds:g} s: stream {stream.name} "
                f"drops what is older than its max_age_seconds ({stream.max_age_seconds:g}), schedules too"
            )
        try:
            due = datetime.fromtimestamp(now, UTC) + timedelta(seconds=delay_seconds)
        except OverflowError:
            raise EncodeError(f"delay_seconds is {delay_seconds:g}, beyond the year 9999") from None
        headers = [
            ("Nats-Schedule", f"@at {due.isoformat(timespec='microseconds').replace('+00:00', 'Z')}"),
            ("Nats-Schedule-Target", target),
        ]
        return self._subject(stream.name, timer), headers

    async def cancel(self, timer: str) -> bool:
        """Drop a schedule, wherever it is; return whether there was one.

        Raises:
            BrokerError: the server did not answer, or refuses.
        """
        purged = 0
        for stream in self._streams:
            body: dict[str, Any] = {"filter": self._subject(stream.name, timer)}
            purged += (await api.request(self._client, f"STREAM.PURGE.{stream.name}", body))["purged"]
        return purged > 0

    def _subject(self, stream: str, timer: str) -> str:
        # No two have the same: what is hashed begins with '='.
        if not _PLAIN.fullmatch(timer):
            timer = f"={hashlib.blake2b(timer.encode(), digest_size=24).hexdigest()}"
        return f"{timer_subjects(stream)[:-1]}at.{self._durable}.{timer}"
