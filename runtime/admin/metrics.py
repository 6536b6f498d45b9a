"""What Prometheus is told, read at each scrape from the files of supervisors and cells; the launcher's alone.

Names, labels and meanings stand in docs/metrics.md too, which a test compares with this.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from importlib import metadata
from itertools import accumulate
from operator import add
from pathlib import Path
from typing import Protocol

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from understudy.runtime.cell.counts import (
    ASK_OUTCOMES,
    BOUNDS,
    CALL_OUTCOMES,
    DEAD_LETTER_REASONS,
    NOTHING,
    SAGA_PHASES,
    TIMER_PHASES,
    Counted,
    counts_path,
    read_counts,
)
from understudy.runtime.cell.status import CellState, CellStatus, boottime
from understudy.runtime.specs import AppSpec, ConsumerSpec

BREAKER_STATES = ("closed", "open", "half_open")
CELL_STATES = tuple(state.name.lower() for state in CellState)
_LE = (*(f"{bound:g}" for bound in BOUNDS), "+Inf")


class ChildView(Protocol):
    """A child as its supervisor sees it."""

    @property
    def name(self) -> str:
        """Its name, such as `delay-monitor/0`."""

    @property
    def kind(self) -> str:
        """What it is, `cell` or `supervisor`."""

    @property
    def state(self) -> str:
        """What it does; `stopped` if it ended for good."""

    @property
    def pid(self) -> int | None:
        """Its process; None while it has none."""

    @property
    def restarts_by(self) -> Mapping[str, int]:
        """How often it was started again, by cause."""


class CellView(Protocol):
    """A cell, by what its supervisor knows and by what it says itself."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def supervision(self) -> ChildView:
        """Its supervisor's view."""

    @property
    def status(self) -> CellStatus | None:
        """Its own; None if it has no cell file."""


class Tree(Protocol):
    """All that is supervised, at one moment."""

    def cells(self) -> Iterable[CellView]:
        """Return the cells, but those below what ended for good."""

    def descendants(self) -> Iterable[ChildView]:
        """Return all cells and supervisors, those that ended too."""


class Metered(Protocol):
    """What the collector asks of the launcher; called in a thread."""

    @property
    def drain_seconds(self) -> float:
        """How long the drain took so far; 0 before it."""

    @property
    def is_draining(self) -> bool:
        """Whether the drain has begun."""

    def not_ready(self) -> dict[str, str]:
        """Return the parts that aren't at work, each with why."""

    def tree(self) -> Tree:
        """Return the tree."""


class Metrics:
    """Renders all metrics of one run.

    Args:
        app: what is declared.
        run_directory: the run's.
        metered: the launcher.
        causes: why something may be started again.
        pending: returns by actor how many messages wait for its consumer, as far as that is known.
    """

    def __init__(
        self,
        app: AppSpec,
        run_directory: Path,
        metered: Metered,
        causes: Sequence[str],
        pending: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._app = app
        self._run_directory = run_directory
        self._metered = metered
        self._causes = causes
        self._pending = pending
        understudy, nats_py, thespian = map(metadata.version, ("understudy", "nats-py", "thespian"))
        self._versions = (understudy, platform.python_version(), nats_py, thespian)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics as text, and its content type; reads files, and is best called in a thread.

        Args:
            accept: the request's Accept header, which may ask for OpenMetrics.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """Yield every family; called by the registry at each scrape."""
        tree = self._metered.tree()
        yield from self._of_app()
        yield from self._of_supervision(tree)
        yield from self._of_actors()
        # Those that ended for good, as they are declared, are no news.
        yield from self._of_cells(
            [cell for cell in tree.cells() if cell.supervision.state != "stopped"], boottime()
        )

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry then collects nothing when this is registered."""
        return ()

    def _of_app(self) -> Iterator[Metric]:
        app = self._app.name
        build = _gauge("understudy_build_info", ["version", "python", "nats_py", "thespian"])
        build.add_metric([app, *self._versions], 1)
        yield build
        for name, value in (
            ("understudy_ready", float(not self._metered.not_ready())),
            ("understudy_draining", float(self._metered.is_draining)),
            ("understudy_drain_seconds", self._metered.drain_seconds),
        ):
            family = _gauge(name, [])
            family.add_metric([app], value)
            yield family

    def _of_supervision(self, tree: Tree) -> Iterator[Metric]:
        app = self._app.name
        cells = _counter("understudy_restarts_total", ["actor", "reason"])
        supervisors = _counter("understudy_supervisor_restarts_total", ["supervisor", "reason"])
        by_actor: dict[str, dict[str, int]] = {consumer.actor: {} for consumer in self._app.consumers}
        for child in tree.descendants():
            if child.kind == "supervisor":
                for cause in self._causes:
                    supervisors.add_metric([app, child.name, cause], child.restarts_by.get(cause, 0))
            else:
                counted = by_actor.setdefault(child.name.rpartition("/")[0], {})
                for cause, restarts in child.restarts_by.items():
                    counted[cause] = counted.get(cause, 0) + restarts
        for actor, counted in by_actor.items():
            for cause in self._causes:
                cells.add_metric([app, actor, cause], counted.get(cause, 0))
        yield cells
        yield supervisors

    def _of_actors(self) -> Iterator[Metric]:
        app = self._app.name
        deliveries = _counter("understudy_deliveries_total", ["actor", "outcome"])
        commits = _counter("understudy_state_commits_total", ["actor", "outcome"])
        calls = _counter("understudy_breaker_calls_total", ["actor", "breaker", "outcome"])
        worded = {words: _counter(words.name, ["actor", words.label]) for words in _WORDED_COUNTERS}
        plain = {counter: _counter(name, ["actor"]) for counter, name in _PLAIN_COUNTERS.items()}
        histograms = {histogram: _histogram(name) for histogram, name in _HISTOGRAM_NAMES.items()}
        pending = _gauge("understudy_consumer_pending_messages", ["actor"])
        waiting = self._pending()
        for consumer in self._app.consumers:
            actor = consumer.actor
            counted = self._counted(actor, consumer.cells)
            for outcome, value in counted.outcomes().items():
                deliveries.add_metric([app, actor, outcome], value)
            if consumer.has_state:
                commits.add_metric([app, actor, "committed"], counted.counters["committed"])
                commits.add_metric([app, actor, "conflict"], counted.counters["conflicts"])
            for words, family in worded.items():
                for word in words.words if words.applies(self._app, consumer) else ():
                    family.add_metric([app, actor, word], counted.counters[f"{words.prefix}_{word}"])
            for breaker, by_outcome in counted.calls.items():
                for outcome, value in zip(CALL_OUTCOMES, by_outcome, strict=True):
                    calls.add_metric([app, actor, breaker, outcome], value)
            for counter, family in plain.items():
                family.add_metric([app, actor], counted.counters[counter])
            for histogram, histogram_family in histograms.items():
                buckets, seconds = counted.histograms[histogram]
                histogram_family.add_metric(
                    [app, actor], list(zip(_LE, accumulate(buckets), strict=True)), seconds
                )
            if actor in waiting:
                pending.add_metric([app, actor], waiting[actor])
        yield from (deliveries, commits, calls)
        yield from worded.values()
        yield from plain.values()
        yield from histograms.values()
        yield pending

    def _counted(self, actor: str, cells: int) -> Counted:
        """Return what all cells of an actor have counted in this run, the dead ones too."""
        each = (read_counts(counts_path(self._run_directory, f"{actor}/{index}")) for index in range(cells))
        return reduce(add, each, NOTHING)

    def _of_cells(self, cells: Sequence[CellView], now: float) -> Iterator[Metric]:
        app = self._app.name
        by_status = {gauge: _gauge(gauge.name, ["actor", "cell"]) for gauge in _CELL_GAUGES}
        up = _gauge("understudy_cell_up", ["actor", "cell"])
        states = _gauge("understudy_cell_state", ["actor", "cell", "state"])
        ages = _gauge("understudy_heartbeat_age_seconds", ["actor", "cell"])
        breakers = _gauge("understudy_breaker_state", ["actor", "cell", "breaker", "state"])
        for cell in cells:
            labels = [app, cell.name.rpartition("/")[0], cell.name]
            up.add_metric(labels, float(cell.supervision.state == "up"))
            status = cell.status
            if status is None or cell.supervision.pid is None:
                # What a dead process has written last is no news either.
                continue
            for gauge, family in by_status.items():
                family.add_metric(labels, gauge.value(status))
            ages.add_metric(labels, max(0.0, now - status.heartbeat))
            for state in CELL_STATES:
                states.add_metric([*labels, state], float(status.state == state))
            for breaker in status.breakers:
                shown = breaker.state.replace("-", "_")
                for state in BREAKER_STATES:
                    breakers.add_metric([*labels, breaker.name, state], float(shown == state))
        yield from by_status.values()
        yield from (up, states, ages, breakers)


class _CellGauge(msgspec.Struct, frozen=True):
    name: str
    value: Callable[[CellStatus], float]


_CELL_GAUGES = (
    _CellGauge("understudy_mailbox_messages", lambda status: status.held),
    _CellGauge("understudy_mailbox_capacity_messages", lambda status: status.capacity),
    _CellGauge("understudy_mailbox_bytes", lambda status: status.held_bytes),
    _CellGauge("understudy_credit_messages", lambda status: status.credit),
    _CellGauge("understudy_publish_window_messages", lambda status: status.publish_window),
    _CellGauge("understudy_connected", lambda status: float(status.connected)),
)


class _Worded(msgspec.Struct, frozen=True):
    """A counter of an actor for each of several words, counted under a prefix and the word."""

    name: str
    label: str
    prefix: str
    words: tuple[str, ...]
    applies: Callable[[AppSpec, ConsumerSpec], bool] = lambda _app, _consumer: True


_WORDED_COUNTERS = (
    _Worded("understudy_dead_letters_total", "reason", "dead_lettered", DEAD_LETTER_REASONS),
    _Worded("understudy_sagas_total", "phase", "saga", SAGA_PHASES, lambda _, consumer: consumer.is_saga),
    _Worded("understudy_ask_outcomes_total", "outcome", "asks", ASK_OUTCOMES),
    _Worded(
        *("understudy_timers_total", "phase", "timers", TIMER_PHASES),
        lambda app, _: any(stream.timers for stream in app.streams),
    ),
)
_PLAIN_COUNTERS = {
    "received": "understudy_received_total",
    "redelivered": "understudy_redeliveries_total",
    "failed": "understudy_failed_attempts_total",
    "taken_over": "understudy_taken_over_total",
    "asks": "understudy_asks_total",
    "late_replies": "understudy_late_replies_total",
}
_HISTOGRAM_NAMES = {
    "handling": "understudy_handling_seconds",
    "lag": "understudy_lag_seconds",
    "publish": "understudy_publish_seconds",
}
_HELP = {
    "understudy_build_info": "What runs, as labels; always 1.",
    "understudy_ready": "Whether everything that the app declares is at work, as /readyz says it.",
    "understudy_draining": "Whether the launcher drains.",
    "understudy_drain_seconds": "How long the launcher has been draining; 0 before it does.",
    "understudy_restarts_total": "Starts of a cell after one that ended, by why that ended.",
    "understudy_supervisor_restarts_total": "Starts of a supervisor after one that ended, by why that ended.",
    "understudy_deliveries_total": "Deliveries that were settled, each once, by what became of them.",
    "understudy_dead_letters_total": "Deliveries that were given up and kept as dead letters, by reason.",
    "understudy_state_commits_total": "Commits of actors' states: stored, or refused for another's.",
    "understudy_breaker_calls_total": "Calls through a circuit breaker, by what became of them.",
    "understudy_sagas_total": f"Sagas that have come to a phase: {', '.join(SAGA_PHASES)}.",
    "understudy_received_total": "Deliveries that the server has sent, repeats included.",
    "understudy_redeliveries_total": "Deliveries that the server had sent before, to whichever cell.",
    "understudy_failed_attempts_total": "Runs of handlers that failed and count as an attempt.",
    "understudy_taken_over_total": "Deliveries that a cell took over from a dead one.",
    "understudy_asks_total": "Requests that handlers have sent and wait for an answer to.",
    "understudy_ask_outcomes_total": "What has come of handlers' asks.",
    "understudy_timers_total": f"Timers of handlers and sagas: {', '.join(TIMER_PHASES)}.",
    "understudy_late_replies_total": "Answers that came when nobody waited for them any more; dropped.",
    "understudy_handling_seconds": "How long a run of a handler took; a batch is one run.",
    "understudy_lag_seconds": (
        "From an event's storing in its stream until it was handled; of events that are acked together and "
        "quickly handled, the last is measured and stands for all."
    ),
    "understudy_publish_seconds": "From the writing of a message until its stream has confirmed it.",
    "understudy_consumer_pending_messages": (
        "Messages in the stream that the consumer has not delivered yet; asked for at most every 5 s."
    ),
    "understudy_mailbox_messages": "Deliveries that the cell holds.",
    "understudy_mailbox_capacity_messages": "How many deliveries the cell may hold.",
    "understudy_mailbox_bytes": "Bytes of the bodies that the cell holds.",
    "understudy_credit_messages": "Deliveries that the cell has asked for and that have not come yet.",
    "understudy_publish_window_messages": "Messages that were published and not confirmed by a stream yet.",
    "understudy_connected": "Whether the cell's connection to the broker stands.",
    "understudy_cell_up": "Whether the cell has started, as its supervisor sees it.",
    "understudy_cell_state": "What the cell says that it does: 1 for that state, 0 for the others.",
    "understudy_heartbeat_age_seconds": "How long ago the cell last showed that it runs.",
    "understudy_breaker_state": "What a circuit breaker does: 1 for that state, 0 for the others.",
}


def _gauge(name: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, _HELP[name], labels=["app", *labels])


def _counter(name: str, labels: Sequence[str]) -> CounterMetricFamily:
    return CounterMetricFamily(name, _HELP[name], labels=["app", *labels])


def _histogram(name: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, _HELP[name], labels=["app", "actor"])
