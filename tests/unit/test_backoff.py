"""How long a child waits before it is started again."""

from __future__ import annotations

from understudy.runtime.supervision.backoff import HEALTHY_SECONDS, Backoff


def ceilings(
    backoff: Backoff, count: int, *, cap_seconds: float = 5.0, seconds_up: float = 1.0
) -> list[float]:
    """Return the next delays at their longest."""
    return [
        backoff.next_delay(seconds_up=seconds_up, cap_seconds=cap_seconds, random=1.0) for _ in range(count)
    ]


def test_delays_double_from_50_ms_up_to_the_cap() -> None:
    """50 ms, 100 ms, … 5 s."""
    assert ceilings(Backoff(), 9) == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_jitter_is_full() -> None:
    """Anything between nothing and the ceiling."""
    backoff = Backoff()
    assert backoff.next_delay(seconds_up=0.0, cap_seconds=5.0, random=0.0) == 0.0
    assert backoff.next_delay(seconds_up=0.0, cap_seconds=5.0, random=0.5) == 0.05


def test_a_healthy_time_begins_anew() -> None:
    """A child that was up long enough is restarted at once again."""
    backoff = Backoff()
    ceilings(backoff, 6)
    assert ceilings(backoff, 2, seconds_up=HEALTHY_SECONDS) == [0.05, 0.05]
    assert ceilings(backoff, 1) == [0.1]


def test_a_child_that_fails_for_days_waits_no_longer_than_the_cap() -> None:
    """The exponent doesn't overflow."""
    backoff = Backoff()
    ceilings(backoff, 5000, cap_seconds=30.0)
    assert ceilings(backoff, 1, cap_seconds=30.0) == [30.0]
