"""The service's account: what is ordered or cancelled counts once for each key, whatever trouble it has."""

from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from understudy.examples.flights.bookings import Bookings, Entry, Result
from understudy.examples.flights.trouble import Fate, Trouble

KEY = "flights.rebooking.UA1.reserve"


@pytest.mark.parametrize("share", ["refuse", "fail", "hang", "lie"])
@pytest.mark.parametrize("part", [0.0, 0.1, 1.0])
def test_so_great_a_part_meets_trouble(share: str, part: float) -> None:
    trouble = Trouble(**{share: part})
    fates = {"fail": Fate.FAILS, "hang": Fate.HANGS, "lie": Fate.LIES}
    keys = [str(number) for number in range(1_000)]
    met = sum(
        trouble.refuses(key) if share == "refuse" else trouble.fate(key, 0) is fates[share] for key in keys
    )
    assert met == pytest.approx(1_000 * part, rel=0.3)


def test_trouble_is_the_same_each_time_and_another_for_the_next_request() -> None:
    trouble = Trouble(fail=0.3, hang=0.3, lie=0.3)
    fates = [trouble.fate(KEY, number) for number in range(50)]
    assert fates == [trouble.fate(KEY, number) for number in range(50)]
    assert set(fates) == {Fate.FAILS, Fate.HANGS, Fate.LIES, Fate.WORKS}


@pytest.mark.parametrize("shares", [{"fail": 2}, {"hang": -0.1}, {"explode": 0.1}, []])
def test_trouble_that_is_none_is_refused(shares: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(shares, Trouble)


def test_a_repeat_is_known_by_its_key_and_has_the_number_of_the_first() -> None:
    with closing(Bookings()) as bookings:
        assert bookings.order("a.do", "seats", "UA1", 1) == Result(Fate.WORKS, 1)
        assert bookings.order("b.do", "charges", "UA1", 80) == Result(Fate.WORKS, 2)
        assert bookings.order("a.do", "seats", "UA1", 1) == Result(Fate.REPEATED, 1)
        assert bookings.entries() == [Entry(1, "seats", "UA1", 1), Entry(2, "charges", "UA1", 80)]
        assert {fate: count for fate, count in bookings.fates().items() if count} == {
            "works": 2,
            "repeated": 1,
        }


def test_who_orders_again_under_another_key_pays_twice() -> None:
    """So that a client with a key of each attempt would be found out."""
    with closing(Bookings()) as bookings:
        for key in ("a", "b"):
            bookings.order(key, "charges", "UA1", 80)
        assert [entry.amount for entry in bookings.entries()] == [80, 80]


def test_a_cancellation_takes_back_all_that_was_ordered_of_it_once() -> None:
    with closing(Bookings()) as bookings:
        bookings.order("a.do", "charges", "UA1", 80)
        bookings.order("b.do", "seats", "UA1", 1)
        bookings.order("c.do", "charges", "UA2", 80)
        assert bookings.cancel("a.undo", "charges", "UA1") == Result(Fate.WORKS, 4)
        assert bookings.cancel("a.undo", "charges", "UA1") == Result(Fate.REPEATED, 4)
        assert bookings.entries()[-1] == Entry(4, "charges", "UA1", -80)


def test_what_is_cancelled_before_it_was_ordered_is_refused_when_it_comes() -> None:
    with closing(Bookings()) as bookings:
        assert bookings.cancel("a.undo", "seats", "UA1") == Result(Fate.WORKS, 1)
        late = bookings.order("a.do", "seats", "UA1", 1)
        assert late == Result(Fate.REFUSED, error="it is cancelled already")
        assert bookings.entries() == [Entry(1, "seats", "UA1", 0)]


@pytest.mark.parametrize(
    ("trouble", "fate", "entries"),
    [
        (Trouble(refuse=1), Fate.REFUSED, 0),
        (Trouble(fail=1), Fate.FAILS, 0),
        (Trouble(hang=1), Fate.HANGS, 0),
        (Trouble(lie=1), Fate.LIES, 1),
    ],
)
def test_only_who_lies_has_done_something(trouble: Trouble, fate: Fate, entries: int) -> None:
    with closing(Bookings()) as bookings:
        bookings.trouble = trouble
        assert bookings.order("a.do", "seats", "UA1", 1).fate is fate
        assert len(bookings.entries()) == entries
        bookings.trouble = Trouble()
        assert bookings.order("a.do", "seats", "UA1", 1).fate is (Fate.REPEATED if entries else Fate.WORKS)


def test_what_was_done_is_not_refused_when_it_comes_again_and_a_cancellation_never_is() -> None:
    with closing(Bookings()) as bookings:
        bookings.order("a.do", "seats", "UA1", 1)
        bookings.trouble = Trouble(refuse=1)
        assert bookings.order("a.do", "seats", "UA1", 1).fate is Fate.REPEATED
        assert bookings.cancel("a.undo", "seats", "UA1").fate is Fate.WORKS


def test_while_it_is_down_nothing_is_done() -> None:
    with closing(Bookings()) as bookings:
        assert bookings.order("a.do", "seats", "UA1", 1, down=True) == Result(Fate.DOWN)
        assert bookings.entries() == []
        assert bookings.fates()[Fate.DOWN] == 1


def test_the_account_outlives_the_service(tmp_path: Path) -> None:
    path = str(tmp_path / "notices.sqlite3")
    for fate in (Fate.WORKS, Fate.REPEATED):
        with closing(Bookings(path)) as bookings:
            assert bookings.order("a.do", "seats", "UA1", 1) == Result(fate, 1)
