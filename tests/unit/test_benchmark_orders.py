"""The order in which a benchmark's rounds measure its contenders."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not in the wheel"
)


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("contenders", range(1, 20))
def test_each_follows_each_other_equally_often_and_has_each_place(contenders: int) -> None:
    """An even number of contenders takes that many rounds, an odd one twice as many; then all repeats."""
    from benchmarks.orders import order_of, rounds_to_even_out

    times = 2 if contenders % 2 else 1
    assert rounds_to_even_out(contenders) == times * contenders
    for begin in (0, times * contenders):
        rounds = [order_of(begin + index, contenders) for index in range(times * contenders)]
        followed = Counter(pair for order in rounds for pair in pairwise(order))
        others = [(one, other) for one in range(contenders) for other in range(contenders) if one != other]
        assert followed == dict.fromkeys(others, times)
        places = Counter((place, one) for order in rounds for place, one in enumerate(order))
        assert set(places.values()) == {times}
        assert len(places) == contenders**2


@pytest.mark.parametrize("contenders", range(3, 20))
def test_between_rounds_nobody_follows_the_same_one_twice(contenders: int) -> None:
    from benchmarks.orders import order_of, rounds_to_even_out

    rounds = [order_of(index, contenders) for index in range(rounds_to_even_out(contenders))]
    between = Counter((before[-1], after[0]) for before, after in pairwise(rounds))
    assert set(between.values()) == {1}


def test_a_few_rounds_are_there_and_back() -> None:
    from benchmarks.orders import order_of

    assert [order_of(index, 2) for index in range(5)] == [[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]]
    assert [order_of(index, 3) for index in range(3)] == [[0, 1, 2], [2, 1, 0], [1, 2, 0]]
    assert [order_of(index, 4) for index in range(3)] == [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]]
