"""Stream: what a user declares about a JetStream stream."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from understudy.actors.errors import DeclarationError
from understudy.actors.keywords import declares
from understudy.actors.names import check_choice, check_integer, check_name, check_seconds
from understudy.actors.subjects import check_filter, covers, overlap
from understudy.runtime.specs import StreamSpec


class Stream:
    """A stream of the app: created if it is missing, verified in what is stated if it isn't.

    What isn't stated is left to the server and never compared. `Stream.existing("ORDERS")` is only used.
    With `timers=True` events for it may be published with a delay, and sagas may read it: it then has the
    subject `timers.<name>.>` too, and needs nats-server 2.12 or later.

    Raises:
        DeclarationError: what is given can't be used.
    """

    __slots__ = ("spec",)

    spec: StreamSpec

    @declares("Stream")
    def __init__(
        self,
        name: str,
        *,
        subjects: Sequence[str],
        storage: Literal["file", "memory"] | None = None,
        retention: Literal["limits", "workqueue", "interest"] | None = None,
        max_age_seconds: float | None = None,
        max_bytes: int | None = None,
        max_messages: int | None = None,
        duplicate_window_seconds: float | None = None,
        replicas: int | None = None,
        timers: bool = False,
    ) -> None:
        where = f"stream {name!r}"
        check_name(name, "Stream")
        if storage is not None:
            check_choice(storage, f"{where}: storage", ("file", "memory"))
        if retention is not None:
            check_choice(retention, f"{where}: retention", ("limits", "workqueue", "interest"))
        seconds = (
            ("max_age_seconds", max_age_seconds),
            ("duplicate_window_seconds", duplicate_window_seconds),
        )
        for option, value in seconds:
            if value is not None:
                check_seconds(value, f"{where}: {option}")
        counts = (("max_bytes", max_bytes), ("max_messages", max_messages), ("replicas", replicas))
        for option, count in counts:
            if count is not None:
                check_integer(count, f"{where}: {option}", minimum=1)
        given: object = timers
        if not isinstance(given, bool):
            raise DeclarationError(f"{where}: timers is {timers!r}; give True or False")
        if timers and retention == "interest":
            # Tried: the server drops the schedule at once, since nobody reads its subject.
            raise DeclarationError(
                f"{where}: retention is 'interest', where the server keeps no schedules; use another, or "
                f"leave out timers=True"
            )
        self.spec = StreamSpec(
            name=name,
            subjects=_check_subjects(subjects, where, (timer_subjects(name),) if timers else ()),
            timers=timers,
            storage=storage,
            retention=retention,
            max_age_seconds=max_age_seconds,
            max_bytes=max_bytes,
            max_messages=max_messages,
            duplicate_window_seconds=duplicate_window_seconds,
            replicas=replicas,
        )

    @classmethod
    @declares("Stream.existing")
    def existing(cls, name: str) -> Stream:
        """A stream that somebody else looks after; an actor reads it by its option `stream`."""
        stream = cls.__new__(cls)
        stream.spec = StreamSpec(name=check_name(name, "Stream.existing"), subjects=(), existing=True)
        return stream

    def __repr__(self) -> str:
        if self.spec.existing:
            return f"Stream.existing({self.spec.name!r})"
        return f"Stream({self.spec.name!r}, subjects={list(self.spec.subjects)!r})"


def holds(stream: StreamSpec, filters: Sequence[str]) -> bool:
    """Whether every subject of `filters` is among the stream's own."""
    return all(any(covers(subject, one) for subject in stream.subjects) for one in filters)


def timer_subjects(stream: str) -> str:
    """What a stream with timers holds beside its own subjects: schedules, and what sagas tell themselves."""
    return f"timers.{stream}.>"


def _check_subjects(subjects: object, where: str, added: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(subjects, list | tuple) or not subjects:
        raise DeclarationError(f'{where}: subjects is {subjects!r}; give a list such as ["orders.>"]')
    checked = (*(check_filter(subject, where) for subject in subjects), *added)
    for one, other in combinations(checked, 2):
        # The server refuses this too (10052), but only once everything else has started.
        if overlap(one, other):
            raise DeclarationError(f"{where}: the subjects {one!r} and {other!r} overlap; keep one of them")
    return checked
