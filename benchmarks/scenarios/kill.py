"""Kill: how long what a killed consumer held stays unhandled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import streams
from benchmarks.apps import ACK_WAIT_SECONDS
from benchmarks.consumers import Running
from benchmarks.draining import LOOK_EVERY_SECONDS, STALL_SECONDS
from benchmarks.errors import BenchmarkFailed, NotConserved
from benchmarks.feeds import UNIFORM
from benchmarks.harness import Contender, Goal, Measure, Sample, Scenario, Stage
from benchmarks.peer_consumers import Careful
from benchmarks.processes import directory_in_memory
from benchmarks.records import VARIABLE, make_record, open_record
from benchmarks.running_app import RunningApp
from benchmarks.streams import ConsumerView

FIRST = Measure(key="first_milliseconds", heading="first recovered, ms")
LAST = Measure(key="last_milliseconds", heading="last recovered, ms")
RECOVERED = Measure(key="recovered", heading="recovered")
REPEATED = Measure(key="repeated", heading="handled twice")
# The first generation of a consumer, and what follows it.
GENERATIONS = 3
# How long the server may take to notice that a connection is gone.
NOTICE_SECONDS = 0.005
# On a busy machine it may be the broker that is waited for at the moment of the kill.
ATTEMPTS = 5


class Victim(NamedTuple):
    """What is killed.

    Args:
        pid: its process.
        replace: called when it is dead, where nothing else replaces it.
        stop: ends what replaced it in good order.
    """

    pid: int
    replace: Callable[[], None]
    stop: Callable[[], object]


class Killed(Contender):
    """A consumer that is killed while it drains."""

    durable: str

    @abstractmethod
    async def make_durable(self, stage: Stage) -> None:
        """Make the durable."""

    @abstractmethod
    def started(self, stage: Stage, record: Path) -> contextlib.AbstractContextManager[Victim]:
        """Run it, until the block ends at the latest.

        Args:
            stage: where.
            record: where it writes down when it handled what; the number of its generation is added.
        """

    async def measure(self, stage: Stage) -> Sample:
        """Kill it, again if at that moment there was nothing to recover."""
        for _ in range(ATTEMPTS):
            if (sample := await self._kill(stage)) is not None:
                return sample
        raise BenchmarkFailed(f"{self.name}: {ATTEMPTS} times it held nothing when it was killed")

    async def _kill(self, stage: Stage) -> Sample | None:
        """Kill it when it has done a tenth, and see when it is through with what it was given before."""
        client = stage.client
        await streams.delete_consumer(client, UNIFORM.stream, self.durable)
        await self.make_durable(stage)
        await streams.pause(client, UNIFORM.stream, self.durable)
        with directory_in_memory(stage.directory) as directory:
            record = directory / "times"
            generations = [Path(f"{record}.{number}") for number in range(1, GENERATIONS + 1)]
            for path in generations:
                make_record(path, stage.messages)
            with self.started(stage, record) as victim:
                await streams.resume(client, UNIFORM.stream, self.durable)
                await self._wait_for_acks(stage, stage.messages // 10)
                killed = time.monotonic_ns()
                os.kill(victim.pid, signal.SIGKILL)
                given = await self._last_given(stage)
                victim.replace()
                await self._wait_for_acks(stage, stage.messages)
                victim.stop()
            times = [open_record(path).tolist() for path in generations]
        return self._judge(stage, times, killed, given)

    async def _wait_for_acks(self, stage: Stage, messages: int) -> None:
        moved, acked = time.monotonic(), 0
        while acked < messages:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            view = await ConsumerView.read(stage.client, UNIFORM.stream, self.durable)
            if view.last - view.ack_pending > acked:
                moved, acked = time.monotonic(), view.last - view.ack_pending
                stage.progress.at(f"{acked:,} of {stage.messages:,}")
            elif time.monotonic() > moved + STALL_SECONDS:
                raise BenchmarkFailed(
                    f"{self.name}: nothing was acknowledged for {STALL_SECONDS:g} s, at {acked:,} of "
                    f"{stage.messages:,}"
                )

    async def _last_given(self, stage: Stage) -> int:
        """Return the last message that the server gave to the dead one, before there is another."""
        deadline = time.monotonic() + NOTICE_SECONDS
        while True:
            view = await ConsumerView.read(stage.client, UNIFORM.stream, self.durable)
            if time.monotonic() > deadline:
                return view.last

    def _judge(self, stage: Stage, times: list[list[int]], killed: int, given: int) -> Sample | None:
        before, *later = times
        after = [max(found) for found in zip(*later, strict=True)]
        never = sum(not (first or second) for first, second in zip(before, after, strict=True))
        if never:
            raise NotConserved(
                f"{self.name}: {stage.messages:,} published and acknowledged, {never:,} never handled"
            )
        recovered = [moment for moment in after[:given] if moment]
        if not recovered:
            return None
        return {
            FIRST.key: (min(recovered) - killed) / 1e6,
            LAST.key: (max(recovered) - killed) / 1e6,
            RECOVERED.key: len(recovered),
            REPEATED.key: sum(bool(first and second) for first, second in zip(before, after, strict=True)),
        }


class KilledCell(Killed):
    """A cell, which its supervisor replaces."""

    def __init__(self) -> None:
        self._app = RunningApp("owner")
        self.name = self._app.name
        self.durable = self._app.durable

    async def make_durable(self, stage: Stage) -> None:
        """Make it as the app does."""
        await self._app.make_durable(stage.client, UNIFORM)

    @contextlib.contextmanager
    def started(self, stage: Stage, record: Path) -> Iterator[Victim]:
        """Run the app."""
        with self._app.run(stage, {VARIABLE: str(record)}) as run:
            (cell,) = run.cells()
            yield Victim(cell.pid, lambda: None, run.program.stop)


class KilledProgram(Killed):
    """nats-py's careful consumer, which something starts anew at once."""

    def __init__(self) -> None:
        self._consumer = Careful("times", "nats-py, careful, restarted at once")
        self.name = self._consumer.name
        self.durable = self._consumer.durable

    async def make_durable(self, stage: Stage) -> None:
        """Make it with the same `ack_wait`."""
        await streams.make_pull_consumer(
            stage.client, UNIFORM, self.durable, ack_wait_seconds=ACK_WAIT_SECONDS
        )

    @contextlib.contextmanager
    def started(self, stage: Stage, record: Path) -> Iterator[Victim]:
        """Run the program."""
        with contextlib.ExitStack() as stack:

            def start(generation: int) -> Running:
                environment = {VARIABLE: f"{record}.{generation}"}
                return stack.enter_context(self._consumer.started(stage, UNIFORM, environment))

            first = start(1)
            replacements: list[Running] = []

            def stop() -> None:
                replacements[0].stop()

            yield Victim(first.pids[0], lambda: replacements.append(start(2)), stop)


class Kill(Scenario):
    """The scenario."""

    name = "kill"
    description = (
        f"kill -9 of a sole owner at full drain, ack_wait {ACK_WAIT_SECONDS:g} s: to the end of recovery"
    )
    takes = "3 min"
    share = 3.0
    measures = (LAST, FIRST, RECOVERED, REPEATED)
    goals = (
        Goal(measure=FIRST, ours="understudy run", at_most=300),
        Goal(measure=LAST, ours="understudy run", at_most=1000),
    )

    def contenders(self, _messages: int) -> Sequence[Contender]:
        """Return ours, and what has to wait for the server."""
        return [KilledCell(), KilledProgram()]

    async def prepare(self, stage: Stage) -> None:
        """Fill the stream once."""
        await streams.fill_stream(stage, UNIFORM, stage.messages)
