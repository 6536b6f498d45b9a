"""Repeats: of warnings and errors that say the same again and again, the first few are written."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from understudy.runtime.telemetry.redaction import shown

# Of entries that differ in nothing but what belongs to one event each, so many are written in a window.
MAX_ALIKE = 50
# What is told apart within a window; of more kinds, all of a logger and level count together.
MAX_KINDS = 256
# What is remembered at once; beyond that the oldest is forgotten.
MAX_WINDOWS = 2 * MAX_KINDS
# As much of a text as tells one error from another.
_TELLING = 300
# As much as is kept of what a count is of.
_KEPT = 1000
# Numbers, ids and addresses; what else differs in a text makes it another.
_VARYING = re.compile(r"[0-9a-f]*\d[0-9a-f]*", re.IGNORECASE)


class Kind(NamedTuple):
    """What is said, and by whom.

    Args:
        logger, level, event: the entry's.
        error: the text of what went wrong; empty if there is none.
        who: the actor, cell, supervisor and child that it names.
    """

    logger: str
    level: int
    event: str
    error: str
    who: tuple[tuple[str, str], ...]


class Suppressed(NamedTuple):
    """Entries that weren't written.

    Args:
        kind: what the first of them said.
        entries: how many.
        seconds: within which time.
        are_alike: whether they said the same, but for numbers and ids; else they were of too many kinds.
    """

    kind: Kind
    entries: int
    seconds: float
    are_alike: bool = True


class _Window(msgspec.Struct):
    """What was seen of one kind since its first entry.

    Args:
        began: when that was.
        are_alike: whether its entries are of one kind, not of all that are too many.
        written: how many entries of equal details were written, by their hash.
        suppressed: how many weren't, of any details.
        first: what the first of these said.
    """

    began: float
    are_alike: bool
    written: dict[int, int]
    suppressed: int = 0
    first: Kind | None = None

    def ended(self, now: float, seconds: float) -> Suppressed | None:
        """Return what it has suppressed, if anything."""
        if self.first is None:
            return None
        return Suppressed(self.first, self.suppressed, min(seconds, now - self.began), self.are_alike)


class Repeats:
    """Says which entries are written.

    Entries are of one kind if they differ only in numbers and ids; of one kind, those with equal details are
    repeats. What it keeps is bounded, however many kinds there are and however long they are. Not
    thread-safe.

    Args:
        limit: how many repeats are written within a window; None for all.
        window_seconds: how long it is, from the first entry of a kind.
        clean: returns a text without secrets.
        clock: tells seconds.
    """

    def __init__(
        self,
        limit: int | None,
        window_seconds: float,
        clean: Callable[[str], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._seconds = window_seconds
        self._clean = clean
        self._clock = clock
        # In the order in which they began.
        self._windows: dict[Kind, _Window] = {}
        # Ended early, to make room.
        self._ended: list[Suppressed] = []
        self._next_end = float("inf")

    def admit(self, kind: Kind, details: Hashable) -> bool:
        """Return whether an entry is to be written.

        Args:
            kind: of which it is.
            details: what else it says, but for what belongs to one event.
        """
        if self._limit is None:
            return True
        window = self._window(kind, self._clock())
        told = hash((kind, details))
        written = window.written.get(told, 0)
        if written < self._limit and (written or len(window.written) < MAX_ALIKE):
            window.written[told] = written + 1
            return True
        window.suppressed += 1
        if window.first is None:
            window.first = self._kept(kind)
            self._next_end = min(self._next_end, window.began + self._seconds)
        return False

    def take_ended(self, *, all_of_them: bool = False) -> Iterator[Suppressed]:
        """Yield what was suppressed in windows that have ended, and forget it.

        Args:
            all_of_them: those that have not ended too.
        """
        yield from self._ended
        self._ended.clear()
        now = self._clock()
        if not all_of_them and now < self._next_end:
            return
        self._next_end = float("inf")
        for alike, window in list(self._windows.items()):
            end = window.began + self._seconds
            if all_of_them or now >= end:
                del self._windows[alike]
                if suppressed := window.ended(now, self._seconds):
                    yield suppressed
            elif window.first is not None:
                self._next_end = min(self._next_end, end)

    def _window(self, kind: Kind, now: float) -> _Window:
        """Return the window that an entry of a kind belongs to."""
        alike = kind._replace(
            event=_without_ids(kind.event), error=_without_ids(kind.error), who=_shortened(kind.who, _TELLING)
        )
        window = self._current(alike, now)
        if window is not None:
            return window
        self._end_old(now)
        if len(self._windows) < MAX_KINDS:
            return self._begin(alike, now, are_alike=True)
        various = Kind(kind.logger[:_TELLING], kind.level, "", "", ())
        return self._current(various, now) or self._begin(various, now, are_alike=False)

    def _current(self, alike: Kind, now: float) -> _Window | None:
        window = self._windows.get(alike)
        return window if window is not None and now - window.began < self._seconds else None

    def _begin(self, alike: Kind, now: float, *, are_alike: bool) -> _Window:
        if len(self._windows) >= MAX_WINDOWS:
            self._end_oldest(now)
        window = self._windows[alike] = _Window(began=now, are_alike=are_alike, written={})
        return window

    def _end_old(self, now: float) -> None:
        while self._windows and now - next(iter(self._windows.values())).began >= self._seconds:
            self._end_oldest(now)

    def _end_oldest(self, now: float) -> None:
        window = self._windows.pop(next(iter(self._windows)))
        if suppressed := window.ended(now, self._seconds):
            self._ended.append(suppressed)

    def _kept(self, kind: Kind) -> Kind:
        """Return a kind as its count names it."""
        # Cleaned while it is whole: what is left of a secret that was cut is no longer known for one.
        event, error = (_cut(self._clean(text), _KEPT) for text in (kind.event, kind.error))
        who = tuple((name, self._clean(text)) for name, text in kind.who)
        return kind._replace(event=event, error=error, who=_shortened(who, _TELLING))


def details_of(fields: Mapping[str, object]) -> Hashable:
    """Return what tells fields apart from others: texts, whole numbers, yes or no, and what went wrong.

    What is measured, like a time, differs each time and says nothing; nor does what is made of an event.

    Args:
        fields: without those that name a delivery.
    """
    return tuple((name, _telling(value)) for name, value in fields.items() if not isinstance(value, float))


def _telling(value: object) -> Hashable:
    if isinstance(value, str | int):
        return value
    kind = type(value).__qualname__
    return f"{kind}: {shown(value)}" if isinstance(value, BaseException) else kind


def _shortened(who: tuple[tuple[str, str], ...], length: int) -> tuple[tuple[str, str], ...]:
    return tuple((name, _cut(text, length)) for name, text in who)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]} …"


def _without_ids(text: str) -> str:
    return _VARYING.sub("#", text[:_TELLING])
