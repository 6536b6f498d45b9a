"""Repeats: what is written of them, what is counted, and that nothing else is."""

from __future__ import annotations

import itertools
import logging
import tracemalloc
from collections.abc import Hashable, Iterator

from understudy.runtime.telemetry.redaction import Redaction
from understudy.runtime.telemetry.repeats import (
    MAX_ALIKE,
    MAX_KINDS,
    MAX_WINDOWS,
    Kind,
    Repeats,
    Suppressed,
    details_of,
)


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def kind(error: str = "timeout", event: str = "failed", cell: str = "a/0") -> Kind:
    return Kind("x", logging.ERROR, event, error, (("cell", cell),))


def admitted(repeats: Repeats, times: int, what: Kind | None = None, details: Hashable = ()) -> int:
    return sum(repeats.admit(what or kind(), details) for _ in range(times))


def test_the_first_few_of_a_window_are_written() -> None:
    """And of the next window as many again."""
    clock = Clock()
    repeats = Repeats(3, 10, clock=clock)
    assert admitted(repeats, 100) == 3
    clock.now += 9.9
    assert admitted(repeats, 100) == 0
    clock.now += 0.2
    assert admitted(repeats, 100) == 3


def test_what_was_suppressed_is_told_when_its_window_has_ended() -> None:
    """Once, and not before; whether or not the same comes again."""
    clock = Clock()
    repeats = Repeats(3, 10, clock=clock)
    admitted(repeats, 100)
    clock.now += 9
    assert list(repeats.take_ended()) == []
    clock.now += 1
    assert list(repeats.take_ended()) == [Suppressed(kind(), 97, 10)]
    assert list(repeats.take_ended(all_of_them=True)) == []
    admitted(repeats, 5)
    clock.now += 20
    admitted(repeats, 1)
    assert list(repeats.take_ended()) == [Suppressed(kind(), 2, 10)]


def test_at_the_end_all_is_told() -> None:
    """Also of a window that goes on, and with the time that it took so far."""
    clock = Clock()
    repeats = Repeats(3, 10, clock=clock)
    admitted(repeats, 4)
    clock.now += 2
    assert list(repeats.take_ended(all_of_them=True)) == [Suppressed(kind(), 1, 2)]


def test_what_was_written_whole_is_told_by_nothing() -> None:
    """No summary of nothing."""
    clock = Clock()
    repeats = Repeats(3, 10, clock=clock)
    assert admitted(repeats, 3) == 3
    clock.now += 11
    assert list(repeats.take_ended()) == []


def test_kinds_do_not_count_for_each_other() -> None:
    """Another error, event, cell, level or logger is something else."""
    repeats = Repeats(1, 10, clock=Clock())
    kinds = [
        *(kind(), kind("refused"), kind(event="lost"), kind(cell="b/0")),
        kind()._replace(level=logging.WARNING),
        kind()._replace(logger="y"),
        # What differs in a number is alike, and yet not the same.
        *(kind("HTTP 503"), kind("HTTP 402")),
    ]
    assert [admitted(repeats, 5, one) for one in kinds] == [1] * len(kinds)


def test_details_tell_entries_apart_until_there_are_too_many() -> None:
    """Each order that fails is told, but not each of thousands."""
    clock = Clock()
    repeats = Repeats(1, 10, clock=clock)
    assert sum(repeats.admit(kind(), number) for number in range(1000)) == MAX_ALIKE
    clock.now += 10
    (told,) = repeats.take_ended()
    assert told.entries == 1000 - MAX_ALIKE


def test_errors_that_differ_in_ids_alone_are_alike() -> None:
    """Else a text with an order's number in it would flood."""
    repeats = Repeats(5, 10, clock=Clock())
    texts = [f"order {number:06x}-{number} not found after {number / 7} s" for number in range(1000)]
    assert sum(repeats.admit(kind(text), ()) for text in texts) == MAX_ALIKE


def words(count: int) -> Iterator[str]:
    """Yield texts that differ in more than numbers."""
    letters = "ghijklmnopqrstuvwxyz"
    return ("".join(word) for word in itertools.islice(itertools.product(letters, repeat=4), count))


def test_of_too_many_kinds_a_few_are_written_and_the_rest_is_counted() -> None:
    """Errors that name a customer each, say, can't flood either; what isn't of them is still written."""
    clock = Clock()
    repeats = Repeats(5, 10, clock=clock)
    written = [word for word in words(10_000) if repeats.admit(kind(f"no customer {word}"), ())]
    assert len(written) == MAX_KINDS + MAX_ALIKE
    others = (kind("refused")._replace(level=logging.CRITICAL), kind("refused")._replace(logger="y"))
    assert [admitted(repeats, 10, other) for other in others] == [5, 5]
    clock.now += 10
    flood, *told = repeats.take_ended()
    assert (flood.entries, flood.are_alike) == (10_000 - MAX_KINDS - MAX_ALIKE, False)
    assert flood.kind.error.startswith("no customer ")
    assert [(one.kind, one.entries) for one in told] == [(others[0], 5), (others[1], 5)]
    assert repeats.admit(kind("after all that"), ())


def test_memory_is_bounded_and_what_is_forgotten_is_told_first() -> None:
    """However many kinds of errors there are, of however many loggers, and however long their texts."""
    repeats = Repeats(1, 10, clock=Clock())
    kinds = (
        kind(word + "x" * 5_000, event=word + "y" * 5_000, cell="z" * 20_000)._replace(logger=word)
        for word in words(600)
    )
    tracemalloc.start()
    try:
        told = []
        for one in kinds:
            assert admitted(repeats, 2, one) == 1
            told += [(suppressed.entries, suppressed.seconds) for suppressed in repeats.take_ended()]
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert told == [(1, 0.0)] * (600 - MAX_WINDOWS)
    assert len(list(repeats.take_ended(all_of_them=True))) == MAX_WINDOWS
    assert kept < 4_000_000


def test_what_is_kept_of_a_text_shows_no_secret() -> None:
    """It is cleaned before it is cut, since half a password isn't known for one."""
    repeats = Repeats(1, 10, Redaction().text, clock=Clock())
    admitted(repeats, 2, kind("x" * 980 + " password=" + "hunter" * 10, cell="y" * 280 + "token=" + "z" * 90))
    (told,) = repeats.take_ended(all_of_them=True)
    assert told.kind.error == "x" * 980 + " password=***"
    assert told.kind.who == (("cell", "y" * 280 + "token=***"),)
    admitted(repeats, 2, kind("x" * 2000))
    (told,) = repeats.take_ended(all_of_them=True)
    assert told.kind.error == "x" * 1000 + " …"


def test_without_a_limit_all_is_written() -> None:
    """And nothing is remembered."""
    repeats = Repeats(None, 10, clock=Clock())
    assert admitted(repeats, 1000) == 1000
    assert repeats._windows == {}


def test_details_are_texts_and_whole_numbers() -> None:
    """What is measured differs each time; what is no plain value counts by its type, but for exceptions."""
    assert details_of({"a": "x", "b": 1, "c": 0.5, "d": None, "e": [1]}) == (
        *(("a", "x"), ("b", 1)),
        *(("d", "NoneType"), ("e", "list")),
    )
    causes = [{"cause": error("x")} for error in (ValueError, KeyError)] + [{"cause": ValueError("y")}]
    assert len({details_of(cause) for cause in causes}) == 3
