"""What has become of a line so far: whose handlers have run, what they have published, what has failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from understudy.actors.errors import CircuitOpen
from understudy.actors.handlers import HandlerSpec
from understudy.runtime.cell.counts import Counts
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.line import Line
from understudy.runtime.cell.outcomes import BACK, Back, Outcome
from understudy.runtime.cell.state import HeldState, Message
from understudy.runtime.jetstream.dead_letters import is_replay
from understudy.runtime.telemetry.trace import current_trace


class Run:
    """A member that needs no more of its handler.

    Attributes:
        delivery: which.
        messages: what it has published.
        is_repeated: whether an earlier commit has it.
        problem: why something couldn't be published.
    """

    __slots__ = ("delivery", "is_repeated", "messages", "problem")

    def __init__(
        self, delivery: HeldDelivery, messages: Sequence[Message] = (), *, is_repeated: bool = False
    ) -> None:
        self.delivery = delivery
        self.messages = messages
        self.is_repeated = is_repeated
        self.problem: BaseException | None = None


class Failure:
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


class LineWork:
    """A line while it is handled.

    Attributes:
        line: which.
        state: the key's, as soon as a handler may want it.
        runs: the members whose handlers have run.
        claimed: the members of an idempotent actor whose marks are theirs to make.
        commits: whether one of them has used the state.
        notes: what is to be counted and called once that is stored, and of which member.
        sends: whether one of them has published something.
        marks: whether one of them is of an idempotent actor.
        failure: the one whose handler has failed.
        outcomes: of members that are decided on; empty if all are settled alike.
    """

    __slots__ = (
        *("claimed", "commits", "failure", "line", "marks", "notes", "outcomes", "runs", "sends"),
        "state",
    )

    def __init__(self, line: Line) -> None:
        self.line = line
        self.state: HeldState | None = None
        self.runs: list[Run] = []
        self.claimed: set[HeldDelivery] = set()
        self.commits = self.sends = self.marks = False
        self.notes: tuple[tuple[HeldDelivery, str, Callable[[], None] | None], ...] = ()
        self.failure: Failure | None = None
        self.outcomes: dict[HeldDelivery, Outcome | Back] = {}

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is to be sent or marked and nothing has failed."""
        return self.failure is None and not (self.sends or self.marks)

    def add(self, run: Run) -> None:
        """Take in a member whose handler has run."""
        self.runs.append(run)
        if run.messages:
            self.sends = True
        if run.delivery.mark is not None:
            self.marks = True

    def commit(self, delivery: HeldDelivery, counter: str, stored: Callable[[], None] | None) -> None:
        """Have the state stored, and something counted and called then."""
        self.commits = True
        if counter or stored is not None:
            self.notes = (*self.notes, (delivery, counter, stored))

    def committed(self, counts: Counts) -> None:
        """Count and call what was to be when the state is stored."""
        for delivery, counter, stored in self.notes:
            if counter:
                counts.count(counter)
            if stored is not None:
                # A failure that is logged next is another member's.
                token = current_trace.set(delivery)
                try:
                    stored()
                finally:
                    current_trace.reset(token)

    def is_known(self, delivery: HeldDelivery) -> bool:
        """Return whether a member with a mark was handled before, under this or another sequence.

        What is applied and wasn't marked yet isn't: its outputs may be missing, and so does its mark. Nor is
        the replay of a dead letter, whose own mark was never made although the state may still name it.
        """
        assert delivery.mark is not None
        is_marked = delivery not in self.claimed
        state = self.state
        if state is None:
            return is_marked
        if delivery.sequence in state.applied:
            return is_marked and delivery.sequence not in state.unsent
        if is_marked or is_replay(delivery.header_block):
            return is_marked
        return delivery.mark.name in state.unmarked.values()

    def all_outcomes(self) -> list[Outcome | Back]:
        """Return what becomes of each member; what nothing is known of is to be handled again."""
        return [self.outcomes.get(member, BACK) for member in self.line.members]
