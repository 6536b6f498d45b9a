"""Backlog: whether a long one is drained as fast as a short one."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import streams
from benchmarks.consumers import Consumer
from benchmarks.draining import Draining
from benchmarks.feeds import BACKLOGS
from benchmarks.harness import RATE, Contender, Goal, Scenario, Stage
from benchmarks.peer_consumers import Careful
from benchmarks.running_app import RunningApp

# Of a round's messages: ten thousand to two million by default, and how often each is drained in a round.
SIZES = (0.1, 1.0, 10.0, 20.0)
TIMES = (4, 1, 1, 1)


class Backlog(Scenario):
    """The scenario."""

    name = "backlog"
    description = "drain backlogs of different lengths, from the first ack to the last"
    takes = "16 min"
    one_size = False

    def contenders(self, messages: int) -> Sequence[Contender]:
        """Return each length, the longest first, and nats-py with the longest and the shortest."""
        lengths = [self._length(messages, size) for size in SIZES]
        found: list[Contender] = []
        for index, length in reversed(list(enumerate(lengths))):
            found.append(self._contender(RunningApp(f"backlog_{index}", _ours(length)), index, length))
        for index in (len(SIZES) - 1, 0):
            careful = Careful(name=f"nats-py, careful, {lengths[index]:,}")
            found.append(self._contender(careful, index, lengths[index]))
        self.goals = (
            Goal(measure=RATE, ours=_ours(lengths[-1]), other=_ours(lengths[0]), at_least=0.9),
            Goal(
                measure=RATE,
                ours=f"nats-py, careful, {lengths[-1]:,}",
                other=f"nats-py, careful, {lengths[0]:,}",
            ),
        )
        return found

    async def prepare(self, stage: Stage) -> None:
        """Fill a stream for each length."""
        for feed, size in zip(BACKLOGS, SIZES, strict=True):
            await streams.fill_stream(stage, feed, self._length(stage.messages, size))

    @staticmethod
    def _length(messages: int, size: float) -> int:
        return max(1, round(messages * size))

    @staticmethod
    def _contender(consumer: Consumer, index: int, length: int) -> Contender:
        return Draining(consumer, BACKLOGS[index], messages=length, times_a_round=TIMES[index])


def _ours(length: int) -> str:
    return f"understudy run, {length:,}"
