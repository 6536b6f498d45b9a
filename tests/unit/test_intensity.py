"""Restart intensity, as OTP counts it."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.runtime.supervision.intensity import Intensity


def test_as_many_restarts_as_allowed_are_borne_within_the_window() -> None:
    """One more isn't."""
    intensity = Intensity(max_restarts=3, max_seconds=5.0)
    assert [intensity.record(now) for now in (0.0, 1.0, 2.0, 3.0)] == [True, True, True, False]


def test_a_restart_older_than_the_window_no_longer_counts() -> None:
    """The window slides with each restart."""
    intensity = Intensity(max_restarts=2, max_seconds=5.0)
    assert all(intensity.record(now) for now in (0.0, 4.0, 5.1, 9.5, 10.2))
    assert not intensity.record(10.3)


def test_a_restart_exactly_as_old_as_the_window_still_counts() -> None:
    """The bound is inclusive."""
    intensity = Intensity(max_restarts=1, max_seconds=5.0)
    assert intensity.record(0.0)
    assert not intensity.record(5.0)


@pytest.mark.parametrize("max_seconds", [0.001, 5.0, 3600.0])
def test_zero_restarts_give_up_at_the_first(max_seconds: float) -> None:
    """Whatever the window."""
    assert not Intensity(max_restarts=0, max_seconds=max_seconds).record(0.0)


@given(
    max_restarts=st.integers(0, 5),
    max_seconds=st.floats(0.01, 60),
    gaps=st.lists(st.floats(0, 30), min_size=1, max_size=40),
)
def test_a_restart_is_borne_as_long_as_no_window_up_to_now_holds_too_many(
    max_restarts: int, max_seconds: float, gaps: list[float]
) -> None:
    """Compared with counting anew each time."""
    intensity = Intensity(max_restarts, max_seconds)
    times = list(accumulate(gaps))
    for index, now in enumerate(times):
        within = [one for one in times[: index + 1] if now - one <= max_seconds]
        assert intensity.record(now) is (len(within) <= max_restarts)
