"""Telemetry: the same drain with what is seen of it, and with as little as there is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from benchmarks import streams
from benchmarks.draining import Draining
from benchmarks.feeds import PLAIN
from benchmarks.harness import RATE, Contender, Goal, Scenario, Stage
from benchmarks.processes import Program
from benchmarks.running_app import Run, RunningApp

ERRORS = {"UNDERSTUDY_LOG__LEVEL": "error"}
INFO = {"UNDERSTUDY_LOG__LEVEL": "info"}
LITTLE = "logs at error, no traces"
USUAL = "logs at info, 1 % of traces"
ALL = "logs at info, all traces"


class TracedApp(RunningApp):
    """An app whose spans go to a collector of its own.

    Args:
        app: its name.
        name: what the table calls it.
        ratio: how many of its traces are sampled.
    """

    def __init__(self, app: str, name: str, ratio: float) -> None:
        super().__init__(app, name, INFO)
        self._ratio = ratio

    @contextlib.contextmanager
    def run(self, stage: Stage, environment: Mapping[str, str] = INFO) -> Iterator[Run]:
        """Start the collector, and run the app."""
        collector = Program(*Program.module("benchmarks.collector"), log=stage.directory / "collector.log")
        with collector:
            traced = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.read_line(),
                "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": str(self._ratio),
            }
            with super().run(stage, {**traced, **environment}) as run:
                yield run


class Telemetry(Scenario):
    """With logs and traces, and without; metrics are always counted."""

    name = "telemetry"
    description = "drain with logs at info (none per delivery) and 1 % or all of its traces; and with neither"
    takes = "1 min"
    goals: Sequence[Goal] = (
        Goal(measure=RATE, ours=USUAL, other=LITTLE, at_least=0.8),
        Goal(measure=RATE, ours="logs at info, no traces", other=LITTLE),
        Goal(measure=RATE, ours=ALL, other=LITTLE),
    )

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return the four."""
        consumers = (
            RunningApp("plain", LITTLE, ERRORS),
            RunningApp("plain", "logs at info, no traces", INFO),
            TracedApp("plain", USUAL, 0.01),
            TracedApp("plain", ALL, 1.0),
        )
        return [Draining(consumer, PLAIN) for consumer in consumers]

    async def prepare(self, stage: Stage) -> None:
        """Fill the stream once."""
        await streams.fill_stream(stage, PLAIN, stage.messages)
