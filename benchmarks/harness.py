"""Rounds: all contenders of a scenario, again and again: a noisy machine is noisy for all of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec
from nats.aio.client import Client

from benchmarks.orders import order_of
from benchmarks.progress import Progress


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a scenario takes place.

    Args:
        url: the nats-server's.
        broker_pid: its process.
        client: the harness's own connection.
        directory: for logs, and what else a run leaves.
        messages: how many one run moves.
        seconds: how long a run takes that is measured by time.
        progress: told how far it is.
    """

    url: str
    broker_pid: int
    client: Client
    directory: Path
    messages: int
    seconds: float
    progress: Progress


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One number that a run is measured by.

    Args:
        key: its name in samples, and so in the JSON.
        heading: its column's heading, with its unit.
        decimals: how many the table shows.
    """

    key: str
    heading: str
    decimals: int = 0

    def format(self, value: float) -> str:
        """The number as the table has it."""
        return f"{value:,.{self.decimals}f}"


RATE = Measure(key="rate", heading="msgs/s")
CPU = Measure(key="cpu_microseconds", heading="CPU µs/msg", decimals=1)
BROKER_CPU = Measure(key="broker_cpu_microseconds", heading="broker's", decimals=1)

Sample = Mapping[str, float]


def rate_sample(*, messages: int, seconds: float, cpu_seconds: float, broker_seconds: float) -> Sample:
    """Return what a run took that is measured by its rate.

    Args:
        messages: how many were moved between the first look at the clock and the last.
        seconds: between these looks.
        cpu_seconds: what the measured processes used meanwhile, user and system.
        broker_seconds: what the broker used.
    """
    return {
        RATE.key: messages / seconds,
        CPU.key: cpu_seconds / messages * 1e6,
        BROKER_CPU.key: broker_seconds / messages * 1e6,
        "messages": messages,
        "seconds": seconds,
    }


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """What a number, or the ratio of two contenders' medians, is meant to be.

    Args:
        measure: which number.
        ours: whose.
        other: by whose it is divided; empty if the number itself is meant.
        at_least, at_most: the bound; one of them.
    """

    measure: Measure
    ours: str
    other: str = ""
    at_least: float | None = None
    at_most: float | None = None


class Contender(ABC):
    """One way to do what a scenario is about.

    Attributes:
        name: what the table calls it.
        times_a_round: how often each round measures it; more than once where a run is short.
    """

    name: str
    times_a_round: int = 1

    def missing(self, stage: Stage) -> str:  # noqa: ARG002
        """Return what has to be installed before it can be measured; empty if nothing. Called once."""
        return ""

    @abstractmethod
    async def measure(self, stage: Stage) -> Sample:
        """Do it once, in processes of its own, and check that every message is accounted for.

        Raises:
            NotConserved: one isn't.
            BenchmarkFailed: the process ended, stalled, or left no result.
        """


class Scenario(ABC):
    """What is measured, and by whom.

    Attributes:
        name: as `--scenario` takes it.
        description: one line for the table.
        takes: how long, about, with all defaults.
        is_quick: whether it is part of a run that names no scenario.
        share: the part of `--messages` that one run moves; 0 where it is measured otherwise.
        one_size: whether every run moves that many.
        measures: the numbers; the table shows the spread of the first, and divides by it.
        goals: what they are meant to be.
    """

    name: str
    description: str
    takes: str
    is_quick: bool = False
    share: float = 1.0
    one_size: bool = True
    measures: Sequence[Measure] = (RATE, CPU, BROKER_CPU)
    goals: Sequence[Goal] = ()

    def size(self, messages: int) -> int:
        """Return how many messages one run moves, of those that `--messages` asks for."""
        return math.ceil(messages * self.share)

    @abstractmethod
    def contenders(self, messages: int) -> Sequence[Contender]:
        """Return who is measured, understudy first.

        Args:
            messages: how many one run moves.
        """

    @abstractmethod
    async def prepare(self, stage: Stage) -> None:
        """Make what all rounds share; called once, before the first."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """All samples of one contender."""

    name: str
    samples: list[Sample]

    def median(self, measure: Measure) -> float:
        """Return the median of one number."""
        return median(sample[measure.key] for sample in self.samples)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a scenario came to.

    Args:
        series: one per contender, in the scenario's order.
        left_out: who wasn't measured, and what has to be installed for it.
    """

    series: list[Series]
    left_out: dict[str, str]


async def run_rounds(
    scenario: Scenario, stage: Stage, rounds: int, only: Collection[str] | None = None
) -> Measured:
    """Measure every contender in every round, each round in an order of its own.

    Args:
        scenario: what is measured.
        stage: where; its message count is the scenario's share already.
        rounds: how many.
        only: the names of those that are measured beside the first; all unless given.
    """
    contenders, left_out = [], {}
    first, *others = scenario.contenders(stage.messages)
    for contender in (first, *(one for one in others if only is None or one.name in only)):
        if missing := contender.missing(stage):
            stage.progress.say(f"{scenario.name}: {contender.name} is left out: {missing}")
            left_out[contender.name] = missing
        else:
            contenders.append(contender)
    await scenario.prepare(stage)
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    for index in range(rounds):
        for contender in [contenders[which] for which in order_of(index, len(contenders))]:
            for _ in range(contender.times_a_round):
                where = f"{scenario.name} {index + 1}/{rounds}  {contender.name}: "
                stage.progress.begin(where)
                sample = await contender.measure(stage)
                samples[contender.name].append(sample)
                values = [
                    f"{measure.format(sample[measure.key])} {measure.heading}"
                    for measure in scenario.measures
                ]
                stage.progress.say(where + ", ".join(values))
    return Measured(
        series=[Series(name=name, samples=values) for name, values in samples.items()], left_out=left_out
    )
