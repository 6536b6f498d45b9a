"""Rounds: all contenders of a scenario in turn, again and again: a noisy machine is noisy for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Protocol

import msgspec
from nats.aio.client import Client


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a scenario takes place.

    Args:
        url: the nats-server's.
        client: the harness's own connection.
        directory: for logs.
        messages: how many one run moves.
    """

    url: str
    client: Client
    directory: Path
    messages: int


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of one contender took.

    Args:
        messages: how many were moved between the first look at the clock and the last.
        seconds: between these looks.
        cpu_seconds: what the measured process used meanwhile, user and system.
    """

    messages: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds

    @property
    def cpu_microseconds(self) -> float:
        """CPU time per message."""
        return self.cpu_seconds / self.messages * 1e6


class Contender(Protocol):
    """One way to do what a scenario is about."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    async def measure(self, stage: Stage) -> Sample:
        """Do it once, in a process of its own, and check that every message is accounted for.

        Raises:
            NotConserved: one isn't.
            BenchmarkFailed: the process ended, stalled, or left no result.
        """


class Scenario(Protocol):
    """What is measured, by whom.

    Attributes:
        name: as `--scenario` takes it.
        description: one line for the table.
        share: the part of `--messages` that one run moves, smaller where all contenders are slow.
    """

    name: str
    description: str
    share: float

    @property
    def contenders(self) -> Sequence[Contender]:
        """Understudy first; its rate is divided by each other's."""

    async def prepare(self, stage: Stage) -> None:
        """Make what all rounds share; called once, before the first."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """All samples of one contender."""

    name: str
    samples: list[Sample]

    @property
    def rate(self) -> float:
        """The median rate."""
        return median(sample.rate for sample in self.samples)

    @property
    def cpu_microseconds(self) -> float:
        """The median CPU time per message."""
        return median(sample.cpu_microseconds for sample in self.samples)


async def run_rounds(
    scenario: Scenario, stage: Stage, rounds: int, say: Callable[[str], None]
) -> list[Series]:
    """Measure every contender once per round, and return their series in the scenario's order.

    Args:
        scenario: what is measured.
        stage: where; its message count is the scenario's share already.
        rounds: how many.
        say: told how far it is.
    """
    await scenario.prepare(stage)
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in scenario.contenders}
    for number in range(1, rounds + 1):
        for contender in scenario.contenders:
            sample = await contender.measure(stage)
            samples[contender.name].append(sample)
            say(
                f"{scenario.name} {number}/{rounds}  {contender.name}: "
                f"{sample.rate:,.0f}/s, {sample.cpu_microseconds:.1f} µs CPU"
            )
    return [Series(name=name, samples=values) for name, values in samples.items()]
