"""How much is fetched ahead follows the handler's rate."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from understudy.runtime.cell.fetch_ahead import FIRST, FetchAhead


def run(ahead: FetchAhead, rate: float, seconds: float, start: float = 0.0, settled: int = 0) -> int:
    """Let a handler work without a break at a rate, observed each 20 ms; return how many it has settled."""
    done = settled
    for step in range(1, round(seconds * 50) + 1):
        done = settled + int(rate * step / 50)
        ahead.observe(start + step / 50, done, idle=False)
    return done


def test_a_quick_handler_has_the_whole_mailbox_within_moments() -> None:
    """Two looks are enough."""
    ahead = FetchAhead(1024, 1, 15)
    assert ahead.limit == FIRST
    run(ahead, 10_000, 0.1)
    assert ahead.limit == 1024


def test_a_slow_handler_gets_half_an_ack_wait_of_work() -> None:
    """Two in a second and 15 seconds of ack_wait: fifteen messages."""
    ahead = FetchAhead(1024, 1, 15)
    run(ahead, 2, 60)
    assert 10 <= ahead.limit <= 20


def test_a_handler_that_stands_still_keeps_as_much_as_it_has_lanes() -> None:
    """Never less, or the lanes would stand idle."""
    ahead = FetchAhead(1024, 16, 15)
    run(ahead, 0, 60)
    assert ahead.limit == 16


def test_idle_time_says_nothing_about_the_rate() -> None:
    """One message a minute, quickly handled, isn't a slow handler."""
    ahead = FetchAhead(1024, 1, 15)
    settled = run(ahead, 10_000, 0.1)
    for minute in range(1, 10):
        ahead.observe(minute * 60, settled + minute, idle=True)
        ahead.observe(minute * 60 + 0.001, settled + minute, idle=False)
    assert ahead.limit == 1024


def one_at_a_time(ahead: FetchAhead, rate: float, count: int) -> None:
    """Let a handler settle all that it has before each look."""
    for number in range(1, count + 1):
        ahead.observe(100 + number / rate, 1000 + number, idle=True)


def test_a_slow_spell_is_over_when_the_handler_is_quick_again() -> None:
    """Though with so little fetched there is never anything left to be seen."""
    ahead = FetchAhead(1024, 1, 15)
    run(ahead, 0, 60)
    assert ahead.limit < 10
    one_at_a_time(ahead, 2000, 20)
    assert ahead.limit == 1024


def test_a_slow_handler_that_never_has_anything_left_gets_no_more_than_it_may() -> None:
    """Half an `ack_wait` of work."""
    ahead = FetchAhead(1024, 1, 15)
    run(ahead, 0, 60)
    one_at_a_time(ahead, 2, 60)
    assert 10 <= ahead.limit <= 20


@given(
    capacity=st.integers(1, 3000),
    least=st.integers(0, 100),
    looks=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 5000), st.booleans())),
)
@example(capacity=1, least=0, looks=[(0.0, 0, True), (1e-308, 1, True)])
def test_it_stays_between_the_lanes_and_the_capacity(
    capacity: int, least: int, looks: list[tuple[float, int, bool]]
) -> None:
    """Whatever it is shown."""
    ahead = FetchAhead(capacity, least, 15)
    now, settled = 0.0, 0
    for seconds, more, idle in looks:
        now, settled = now + seconds, settled + more
        ahead.observe(now, settled, idle=idle)
        assert min(capacity, max(1, least)) <= ahead.limit <= capacity
