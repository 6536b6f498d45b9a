"""Handles deliveries of an actor with state: run, commit, publish, ack.

What waits of one key is handled together, each on what the one before it has left, and stored by one
compare-and-set: the values, the sequences that are in them, and what the handlers have published. Only then
that is sent, and only then are they acked. So a delivery that comes again either finds itself in the state,
and what it has published is sent again under the same ids; or its handler runs again, as if never before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from understudy.actors.errors import BrokerError, CircuitOpen, StateError
from understudy.actors.handlers import HandlerSpec
from understudy.runtime.breakers.breakers import Breakers
from understudy.runtime.cell.calls import Calls
from understudy.runtime.cell.context import CellContext
from understudy.runtime.cell.deadline import Deadline
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.failures import Broker, Failures
from understudy.runtime.cell.ledger import Ledger
from understudy.runtime.cell.line import Line
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.outcomes import BACK, SETTLED, Again, Back, Outcome
from understudy.runtime.cell.outputs import Cause, Outputs
from understudy.runtime.cell.state import HeldState, Message, States
from understudy.runtime.cell.status import Status
from understudy.runtime.jetstream.publish_window import PublishWindow
from understudy.runtime.jetstream.settlement import Settlement
from understudy.runtime.stores.state import Ack, Conflict
from understudy.runtime.telemetry.trace import current_trace

# A commit is shared by what is handled in so short a time, so that none waits long for those behind it.
SHARE_SECONDS = 0.002
MAX_SHARED = 256
# What can't be read waits for another version of the code.
UNREADABLE_SECONDS = 10.0


class _Run:
    """A member that needs no more of its handler.

    Attributes:
        delivery: which.
        messages: what it has published.
        is_repeated: whether an earlier commit has it.
        problem: why something couldn't be published.
    """

    __slots__ = ("delivery", "is_repeated", "messages", "problem")

    def __init__(
        self, delivery: HeldDelivery, messages: Sequence[Message], *, is_repeated: bool = False
    ) -> None:
        self.delivery = delivery
        self.messages = messages
        self.is_repeated = is_repeated
        self.problem: BaseException | None = None


class _Failure:
    """The member that has failed, which ends its line."""

    __slots__ = ("delivery", "error", "failed_trial", "handler")

    def __init__(
        self,
        delivery: HeldDelivery,
        handler: HandlerSpec,
        error: BaseException,
        failed_trial: CircuitOpen | None,
    ) -> None:
        self.delivery = delivery
        self.handler = handler
        self.error = error
        self.failed_trial = failed_trial


class _Work:
    """A line while it is handled.

    Attributes:
        line: which.
        state: the key's, as soon as a handler may want it.
        runs: the members whose handlers have run.
        commits: whether one of them has used the state.
        sends: whether one of them has published something.
        failure: the one whose handler has failed.
        outcomes: of members that are decided on; empty if all are settled alike.
    """

    __slots__ = ("commits", "failure", "line", "outcomes", "runs", "sends", "state")

    def __init__(self, line: Line) -> None:
        self.line = line
        self.state: HeldState | None = None
        self.runs: list[_Run] = []
        self.commits = self.sends = False
        self.failure: _Failure | None = None
        self.outcomes: dict[HeldDelivery, Outcome | Back] = {}

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is to be sent and nothing has failed."""
        return self.failure is None and not self.sends

    def when_answered(
        self, action: Callable[[_Work, asyncio.Future[Any]], None]
    ) -> Callable[[asyncio.Future[Any]], None]:
        """Return a callback that does something more with the line, and has the cell fail if that raises."""

        def act(future: asyncio.Future[Any]) -> None:
            try:
                action(self, future)
            except BaseException as error:  # noqa: BLE001
                self.line.fail(error)

        return act

    def add(self, run: _Run) -> None:
        """Take in a member whose handler has run."""
        self.runs.append(run)
        if run.messages:
            self.sends = True

    def all_outcomes(self) -> list[Outcome | Back]:
        """Return what becomes of each member; what nothing is known of is to be handled again."""
        return [self.outcomes.get(member, BACK) for member in self.line.members]


class StatePipeline:
    """Handles one line at a time per lane; never raises.

    Args:
        calls: runs the handlers.
        failures: settles what has failed.
        outputs: makes the outputs of a delivery.
        open_: settles a delivery that has no handler to run, or says that it stays; None if it is to be run.
        acknowledge: acks and returns when that is confirmed; None if acks are fire and forget.
        handled: called with how many were handled.
        broker, window, settlement: the data path.
        mailbox, ledger, status: what the cell holds and says.
        breakers: the cell's.
        states: the actor's.
        settled: called when the mailbox has room again.
        stop: has the cell stop itself.
    """

    def __init__(
        self,
        *,
        calls: Calls,
        failures: Failures,
        outputs: Callable[[Cause], Outputs],
        open_: Callable[[HeldDelivery], Awaitable[Outcome | None]],
        acknowledge: Callable[[HeldDelivery], Awaitable[None]] | None,
        handled: Callable[[int], None],
        broker: Broker,
        window: PublishWindow,
        settlement: Settlement,
        mailbox: Mailbox,
        ledger: Ledger,
        status: Status,
        breakers: Breakers,
        states: States,
        settled: Callable[[], None],
        stop: Callable[[], None],
    ) -> None:
        self._calls = calls
        self._failures = failures
        self._outputs = outputs
        self._open = open_
        self._acknowledge = acknowledge
        self._handled = handled
        self._broker = broker
        self._window = window
        self._settlement = settlement
        self._mailbox = mailbox
        self._ledger = ledger
        self._status = status
        self._breakers = breakers
        self._states = states
        self._settled = settled
        self._stop = stop
        self._log = structlog.get_logger("understudy.actor")
        self._tasks: set[asyncio.Task[None]] = set()

    async def handle(self, line: Line, deadline: Deadline) -> None:
        """Run the handlers of a line, and see to it that it is settled."""
        work = _Work(line)
        await self._handle_members(work, deadline)
        if not work.commits:
            self._go_on(work)
            return
        assert work.state is not None
        try:
            answer = await self._states.commit(work.state)
        except BrokerError as problem:
            self._rerun(work, problem)
        else:
            answer.add_done_callback(work.when_answered(self._committed))

    def _committed(self, work: _Work, answer: asyncio.Future[Ack]) -> None:
        assert work.state is not None
        try:
            self._states.committed(work.state, answer)
        except (Conflict, BrokerError) as problem:
            self._rerun(work, problem)
        else:
            self._status.count("committed")
            self._go_on(work)

    def _go_on(self, work: _Work) -> None:
        """Do what is left when all is stored."""
        if work.is_quiet and self._acknowledge is None:
            self._ack([run.delivery for run in work.runs])
            self._settle(work)
            return
        task = asyncio.get_running_loop().create_task(self._finish(work), name="understudy-line")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(work.when_answered(lambda _, finished: finished.result()))

    def _settle(self, work: _Work) -> None:
        if work.state is not None:
            self._states.give_back(work.state)
        if not work.outcomes:
            work.line.settle(SETTLED)
            return
        for run in work.runs:
            work.outcomes.setdefault(run.delivery, SETTLED)
        work.line.settle(work.all_outcomes())

    async def _handle_members(self, work: _Work, deadline: Deadline) -> None:
        """Run the handlers of a line, until one of its members stays or the first has waited long enough."""
        line = work.line
        until = time.monotonic() + SHARE_SECONDS
        delivery: HeldDelivery | None = line.members[0]
        while delivery is not None:
            current_trace.set(delivery)
            outcome = await self._open(delivery)
            if outcome is None and delivery.state_name:
                if work.state is None:
                    try:
                        work.state = await self._states.take(delivery.state_name)
                    except (BrokerError, StateError) as error:
                        outcome = self._postpone(delivery, error)
                elif work.state.name != delivery.state_name:
                    # Python holds keys for equal, (1,) and (True,), that are stored under different names.
                    work.outcomes[delivery] = BACK
                    return
            if outcome is None:
                await self._run(work, delivery, deadline)
                if work.failure is not None:
                    return
            else:
                work.outcomes[delivery] = outcome
                if outcome is not SETTLED:
                    return
            if time.monotonic() > until or len(line.members) >= MAX_SHARED:
                return
            if work.sends and work.state is not None and not work.state.has_room(self._broker.max_payload):
                return
            delivery = line.next()

    async def _run(self, work: _Work, delivery: HeldDelivery, deadline: Deadline) -> None:
        """Run a handler, and take what it made of the state."""
        state = work.state
        if state is not None and delivery.sequence in state.applied:
            self._log.info("already applied", sequence=delivery.sequence, subject=delivery.subject)
            self._status.count("already_applied")
            messages = state.unsent.get(delivery.sequence, ())
            work.add(_Run(delivery, messages, is_repeated=True))
            return
        handler = delivery.handler
        assert handler is not None
        outputs = self._outputs(delivery)
        context = None
        if handler.wants_context:
            value = None if state is None else state.value
            context = CellContext(delivery, self._breakers, self._log, outputs.send, self._stop, value)
        self._ledger.handling(delivery.slot)
        try:
            result = await self._calls.run(handler, delivery.event, context, deadline)
            messages = self._encode(outputs, context, result)
            if context is not None and context.touched:
                assert state is not None
                state.apply(delivery.sequence, messages, self._broker.max_payload)
                work.commits = True
        except asyncio.CancelledError:
            # Ours alone: every other one has been made an error.
            raise
        # A handler may raise anything, and that is what retries are for; one that exits is no better.
        except BaseException as error:  # noqa: BLE001
            if state is not None:
                state.undo()
            failed_trial = None if context is None else context.failed_trial
            work.failure = _Failure(delivery, handler, error, failed_trial)
        else:
            work.add(_Run(delivery, messages))
        finally:
            # From now on its process doesn't die of it.
            self._ledger.held(delivery.slot)
            if outputs.sent:
                self._status.count("published", outputs.sent)

    def _encode(self, outputs: Outputs, context: CellContext | None, result: object) -> Sequence[Message]:
        collected = () if context is None else context.collected
        if result is None and not collected:
            return ()
        messages = outputs.encode_all(collected, result)
        for message in messages:
            # What can't be sent is better found out before it is stored.
            self._window.check(*message)
        return messages

    def _rerun(self, work: _Work, problem: BaseException) -> None:
        """Have everything handled again that isn't stored, on what is: the state isn't given back."""
        for member in work.line.members:
            # A handler may have changed it.
            member.event = None
        if isinstance(problem, Conflict):
            self._status.count("conflicts")
            self._log.info("state was changed by another", error=str(problem))
        else:
            first = work.runs[0].delivery
            work.outcomes[first] = self._postpone(first, problem)
        work.line.settle(work.all_outcomes())

    async def _finish(self, work: _Work) -> None:
        """Send what was published, ack, and settle what has failed."""
        runs, state = work.runs, work.state
        if work.sends:
            await self._send(runs)
        problems = []
        for run in runs:
            if run.problem is not None:
                problems.append(run.problem)
            elif run.messages and state is not None:
                state.unsent.pop(run.delivery.sequence, None)
        done = [run.delivery for run in runs if run.problem is None]
        if self._acknowledge is not None:
            await asyncio.gather(*map(self._acknowledge, done))
        self._ack(done)
        if problems:
            await self._fail_unsent(work, problems)
        if work.failure is not None:
            await self._fail(work, work.failure)
        self._settle(work)

    async def _fail_unsent(self, work: _Work, problems: list[BaseException]) -> None:
        for run in work.runs:
            delivery = run.delivery
            if run.problem is not None:
                assert delivery.handler is not None
                current_trace.set(delivery)
                work.outcomes[delivery] = await self._failures.failed(
                    delivery, delivery.handler, run.problem, None
                )
        await self._failures.judge(problems, None, partly=len(problems) < len(work.runs))

    async def _fail(self, work: _Work, failure: _Failure) -> None:
        """Settle what has failed, unless an earlier one of its key stays, which it must not pass."""
        if any(outcome is not SETTLED for outcome in work.outcomes.values()):
            return
        work.outcomes[failure.delivery] = await self._failures.failed(
            failure.delivery, failure.handler, failure.error, failure.failed_trial
        )
        await self._failures.judge([failure.error], failure.failed_trial)

    async def _send(self, runs: list[_Run]) -> None:
        confirmed: list[tuple[_Run, asyncio.Future[Any]]] = []
        for run in runs:
            try:
                for message in run.messages:
                    future = await self._window.enqueue(*message)
                    confirmed.append((run, future))
            except BrokerError as error:
                run.problem = error
        sent = repeated = 0
        answers = await asyncio.gather(*(future for _, future in confirmed), return_exceptions=True)
        for (run, _), answer in zip(confirmed, answers, strict=True):
            if isinstance(answer, BaseException):
                run.problem = run.problem or answer
            else:
                sent += 1
                repeated += run.is_repeated
        self._status.count("published", sent)
        self._status.count("published_again", repeated)

    def _ack(self, deliveries: list[HeldDelivery]) -> None:
        for delivery in deliveries:
            self._mailbox.done(delivery)
        self._handled(len(deliveries))
        # Last, since it says that there is room again.
        if self._acknowledge is not None:
            self._settled()
        else:
            self._settlement.ack_all([delivery.reply for delivery in deliveries])

    def _postpone(self, delivery: HeldDelivery, error: BaseException) -> Again:
        if isinstance(error, BrokerError):
            return self._failures.postpone(delivery, error)
        self._log.error("state can't be read", error=str(error), sequence=delivery.sequence)
        return Again(UNREADABLE_SECONDS)
