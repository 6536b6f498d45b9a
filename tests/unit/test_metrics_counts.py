"""The file that a cell counts in: one for all its generations, read by anyone at any time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.runtime.cell.counts import (
    BOUNDS,
    MAX_BREAKERS,
    NOTHING,
    OUTCOMES,
    QUICK,
    Counts,
    counts_path,
    read_counts,
)

WRITER = """
import sys
from pathlib import Path
from understudy.runtime.cell.counts import QUICK, Counts
counts = Counts.open(Path(sys.argv[1]))
while True:
    counts.words[QUICK] += 1
    counts.count("handled")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's counts are to be."""
    return counts_path(tmp_path, "billing/0")


def test_a_cell_that_never_began_has_counted_nothing(path: Path) -> None:
    """Nor has one whose file is only begun."""
    assert read_counts(path) == NOTHING
    path.write_bytes(b"\0" * 100)
    assert read_counts(path) == NOTHING


def test_a_generation_goes_on_where_the_one_before_stood(path: Path) -> None:
    """Counters, histograms and breakers, of which the second knows them in another order."""
    first = Counts.open(path)
    first.count("retried", 3)
    first.observe("handling", 0.02, 2)
    first.called("smtp", "success")
    second = Counts.open(path)
    second.count("retried")
    second.observe("handling", 0.02)
    second.called("sms", "failure")
    second.called("smtp", "rejected")
    counted = read_counts(path)
    assert counted.outcomes()["retried"] == 4
    buckets, seconds = counted.histograms["handling"]
    assert buckets[BOUNDS.index(0.025)] == 3
    assert seconds == pytest.approx(0.06)
    assert counted.calls == {"smtp": (1, 0, 1, 0, 0), "sms": (0, 1, 0, 0, 0)}


def test_what_is_quickly_handled_is_in_the_first_bucket_and_an_outcome(path: Path) -> None:
    """By one store."""
    counts = Counts.open(path)
    counts.words[QUICK] += 2
    counts.count("handled")
    counted = read_counts(path)
    assert counted.outcomes()["handled"] == counts.handled() == 3
    assert counted.histograms["handling"][0][0] == 2


@given(seconds=st.floats(min_value=-10, max_value=1e6))
def test_an_observation_is_in_the_bucket_whose_bound_is_next(
    tmp_path_factory: pytest.TempPathFactory, seconds: float
) -> None:
    """Bounds are inclusive; what clocks that differ make negative is none."""
    path = tmp_path_factory.mktemp("counts") / "one"
    Counts.open(path).observe("lag", seconds)
    buckets, total = read_counts(path).histograms["lag"]
    (bucket,) = [index for index, number in enumerate(buckets) if number]
    assert sum(buckets) == 1
    assert bucket == len(BOUNDS) or seconds <= BOUNDS[bucket]
    assert bucket == 0 or seconds > BOUNDS[bucket - 1]
    assert total == max(0.0, seconds)


def test_replicas_add_up(tmp_path: Path) -> None:
    """Breakers that one has met and the other not, too."""
    for index, breaker in enumerate(("smtp", "sms")):
        counts = Counts.open(counts_path(tmp_path, f"billing/{index}"))
        counts.count("dead_lettered_crashed", index + 1)
        counts.published(0.5)
        counts.called(breaker, "timeout")
        counts.called("common", "success")
    one, other = (read_counts(counts_path(tmp_path, f"billing/{index}")) for index in (0, 1))
    together = one + other + NOTHING
    assert together.outcomes() == dict.fromkeys(OUTCOMES, 0) | {"dead_lettered": 3}
    assert together.histograms["publish"][0][BOUNDS.index(0.5)] == 2
    assert together.calls["smtp"] == together.calls["sms"] == (0, 0, 0, 1, 0)
    assert together.calls["common"] == (2, 0, 0, 0, 0)


def test_breakers_beyond_the_room_for_them_are_not_counted(path: Path) -> None:
    """Those that there is room for are."""
    counts = Counts.open(path)
    for number in range(MAX_BREAKERS + 1):
        counts.called(f"breaker-{number}", "success")
    calls = read_counts(path).calls
    assert len(calls) == MAX_BREAKERS
    assert set(calls.values()) == {(1, 0, 0, 0, 0)}


def test_breakers_that_threads_meet_at_once_have_words_of_their_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handlers run in threads, and the first call of a breaker takes many steps."""
    counts = Counts.open(path)
    names = [f"breaker-{number}" for number in range(8)]
    together = threading.Barrier(len(names))
    write_header = Counts._write_header

    def write_slowly(self: Counts, breakers: list[str]) -> None:
        time.sleep(0.001)
        write_header(self, breakers)

    monkeypatch.setattr(Counts, "_write_header", write_slowly)

    def call(name: str) -> None:
        together.wait()
        for _ in range(3):
            counts.called(name, "success")

    threads = [threading.Thread(target=call, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_counts(path).calls == dict.fromkeys(names, (3, 0, 0, 0, 0))


def test_who_reads_while_it_is_written_never_sees_a_counter_go_back(path: Path) -> None:
    """Until the writer is killed, and after that too."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    try:
        handled = 0
        while handled < 100_000:
            now = read_counts(path).outcomes()["handled"]
            assert now >= handled
            handled = now
    finally:
        writer.kill()
        writer.wait()
    last = read_counts(path).outcomes()["handled"]
    assert last >= handled
    assert Counts.open(path).handled() == last
