"""Ask: from a request to its answer, one by one and many at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from benchmarks import streams
from benchmarks.consumers import NOTHING
from benchmarks.draining import check_conserved, watch
from benchmarks.errors import NotConserved
from benchmarks.feeds import PLAIN
from benchmarks.harness import BROKER_CPU, RATE, Contender, Goal, Measure, Sample, Scenario, Stage
from benchmarks.peers.asking import Result
from benchmarks.processes import Program, cpu_seconds
from benchmarks.running_app import PUBLIC_LANE, RunningApp
from benchmarks.scenarios.latency import P50, P99

ANSWERER_CPU = Measure(key="answerer_cpu_microseconds", heading="answerer's CPU µs", decimals=1)
ASKER_CPU = Measure(key="asker_cpu_microseconds", heading="asker's", decimals=1)
OURS = "understudy ask"
REQUEST = "nats-py request, core NATS"


class _Used(NamedTuple):
    answerer: float
    broker: float


class AskingActor(Contender):
    """An actor of `understudy run`, asked by a Publisher.

    Args:
        name: what the table calls it.
        how: as `benchmarks.peers.asking` takes it.
        environment: configures the run.
    """

    def __init__(self, name: str, how: str, environment: Mapping[str, str] = NOTHING) -> None:
        self.name = name
        self._how = how
        self._app = RunningApp("answering", name, environment)

    async def measure(self, stage: Stage) -> Sample:
        """Ask so many, and see that each was stored, handled once and answered."""
        client, app = stage.client, self._app
        await streams.make_stream(client, PLAIN)
        await app.make_durable(client, PLAIN)
        with app.started(stage, PLAIN) as running:
            before = _Used(running.cpu_seconds(), cpu_seconds(stage.broker_pid))
            result = _ask(stage, self._how)
            after = _Used(running.cpu_seconds(), cpu_seconds(stage.broker_pid))
            await watch(stage, self.name, PLAIN, app.durable, result.answered, running)
            acked = running.stop()
        dead = await app.count_dead(client)
        await check_conserved(stage, self.name, PLAIN, app.durable, result.answered, acked=acked, dead=dead)
        return _sample(result, stage, before, after)


class Requesting(Contender):
    """A plain subscription, asked by nats-py's `request`: nothing is stored, and nothing comes again."""

    name = REQUEST

    async def measure(self, stage: Stage) -> Sample:
        """Ask so many."""
        log = stage.directory / "responder.log"
        command = Program.module("benchmarks.peers.responder", stage.url, PLAIN.subject)
        # Else it would take the requests, too.
        await streams.delete_stream(stage.client, PLAIN.stream)
        with Program(*command, log=log) as program:
            program.read_line()
            pid = program.process.pid
            before = _Used(cpu_seconds(pid), cpu_seconds(stage.broker_pid))
            result = _ask(stage, "nats-py")
            after = _Used(cpu_seconds(pid), cpu_seconds(stage.broker_pid))
            program.stop()
            answered = int(program.read_line())
        if answered != result.answered:
            raise NotConserved(f"{self.name}: {answered:,} answered, {result.answered:,} answers came")
        return _sample(result, stage, before, after)


def _ask(stage: Stage, how: str) -> Result:
    command = Program.module("benchmarks.peers.asking", stage.url, PLAIN.subject, str(stage.messages), how)
    with Program(*command, log=stage.directory / "asker.log") as program:
        return msgspec.json.decode(program.read_line(), type=Result)


def _sample(result: Result, stage: Stage, before: _Used, after: _Used) -> Sample:
    return {
        RATE.key: stage.messages / result.seconds,
        P50.key: result.p50_milliseconds,
        P99.key: result.p99_milliseconds,
        ASKER_CPU.key: result.cpu_seconds / stage.messages * 1e6,
        ANSWERER_CPU.key: (after.answerer - before.answerer) / result.answered * 1e6,
        BROKER_CPU.key: (after.broker - before.broker) / result.answered * 1e6,
    }


class Ask(Scenario):
    """The scenario."""

    name = "ask"
    description = "ask an actor and wait for its answer: one by one (p50, p99), then 64 at once (the rest)"
    takes = "3 min"
    share = 0.2
    measures = (RATE, P50, P99, ASKER_CPU, ANSWERER_CPU, BROKER_CPU)
    goals = (Goal(measure=RATE, ours=OURS, other=REQUEST), Goal(measure=P50, ours=OURS, other=REQUEST))

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return ours on either lane, and what core NATS has, without a stream."""
        return [
            AskingActor(OURS, "understudy"),
            AskingActor("understudy ask, public API", "understudy-public", PUBLIC_LANE),
            Requesting(),
        ]

    async def prepare(self, stage: Stage) -> None:
        """Nothing to do: each run has a stream of its own, or none."""
