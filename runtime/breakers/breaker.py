"""One circuit breaker: who may call, and what becomes of what the calls say."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import pybreaker
import structlog

from understudy.actors.errors import BulkheadFull, CircuitOpen
from understudy.actors.outcomes import Reject, Retry
from understudy.actors.policies import CircuitBreaker
from understudy.runtime.breakers.record import CLOSED, HALF_OPEN, OPEN, Record
from understudy.runtime.breakers.storage import SharedStorage

# A cell whose trial has failed lets the others go first, who may have better deliveries to try.
LAST_IN_LINE_SHARE = 0.1
LAST_IN_LINE_SECONDS = 0.25
# What says nothing of the service: the handler's own words, and other breakers'.
_OWN_WORDS = (CircuitOpen, BulkheadFull, Retry, Reject)
_log = structlog.get_logger("understudy.breaker")


class Peers(Protocol):
    """The other cells that have the same breaker."""

    async def claim(self, record: Record) -> bool:
        """Write the claim of a trial, if nobody else was first; True too if nobody can be asked."""
        ...

    def tell(self) -> None:
        """Hear that there is something to write; from any thread."""
        ...

    async def told(self) -> None:
        """Return when everything is written, or can't be just now; in the cell's event loop."""
        ...


class Breaker:
    """One named breaker, as this cell sees it; safe for threads.

    Closed lets every call through and counts failures in a row; open lets none through; after
    `reset_timeout_seconds` one trial goes through at a time, and `success_threshold` of them in a row close
    it. pybreaker counts and decides. By itself it would let any number of calls through half-open, count a
    cancellation as a failure, and forget its failures over an excluded exception; so none of these reach it.

    Args:
        policy: its settings.
        changed: called when it has opened, closed, or lets its next trial through at another time, in the
            thread where that came to pass.
        count: called with the name of a counter, likewise.
        called: called with what became of a call, in the thread that made it.
        me: names this cell among the others: its name, the same for the one that replaces it, a dot, and what
            is its own.
        call_bound_seconds: how long a call may take at most, where the policy says nothing.

    Attributes:
        policy: its settings.
        peers: the other cells, once there is a connection.
        is_closed: whether every call goes through.
        call_bound_seconds: how long a call may take at most.
    """

    def __init__(
        self,
        policy: CircuitBreaker,
        changed: Callable[[str], None] = lambda _: None,
        count: Callable[[str], None] = lambda _: None,
        called: Callable[[str], None] = lambda _: None,
        me: str = "",
        call_bound_seconds: float = 30.0,
    ) -> None:
        self.policy = policy
        self.peers: Peers | None = None
        self._changed = changed
        self._count = count
        self._called = called
        self._me = me or f"cell-{id(self)}"
        self._lock = threading.RLock()
        self._storage = SharedStorage(self._me)
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=policy.fail_max,
            success_threshold=policy.success_threshold,
            name=policy.name,
            state_storage=self._storage,
        )
        self.call_bound_seconds = policy.timeout_seconds or call_bound_seconds
        # After so long a claim without a result is its maker's death; until then no other call is made.
        self._lease_seconds = max(policy.reset_timeout_seconds, self.call_bound_seconds + 1.0)
        # When a trial may be claimed.
        self._due = 0.0
        self._trial = False
        self.is_closed = True

    @property
    def record(self) -> Record:
        """Its state as this cell knows it."""
        return self._storage.record

    def wait_seconds(self) -> float | None:
        """Return how long until a trial may be claimed; None if the breaker is closed."""
        with self._lock:
            return None if self.is_closed else self._wait()

    # A call

    def check(self) -> None:
        """Raise CircuitOpen if no call may be made now, not even as a trial."""
        with self._lock:
            if not self.is_closed and (wait := self._wait()):
                raise CircuitOpen(self.policy.name, wait)

    async def claim(self) -> bool:
        """Ask to make a call, and return whether it is a trial.

        Raises:
            CircuitOpen: it may not be made.
        """
        claim = self._take_place()
        if claim is None:
            return False
        try:
            won = self.peers is None or await self.peers.claim(claim)
        except BaseException:
            # Cancelled, as a rule; whatever it was, a trial that isn't made must let others pass.
            with self._lock:
                before = self._storage.record
                self._trial = False
                self._give_back_unused()
                after = self._storage.record
            self._tell(before, after)
            raise
        return self._begin_trial(claim, won)

    def refused(self) -> None:
        """Count a call that could not be made, since the breaker is open or its bulkhead full."""
        self._called("rejected")

    def leave(
        self, trial: bool, opening: int, error: BaseException | None, *, late: bool = False
    ) -> CircuitOpen | None:
        """Record how a call ended, and return the open breaker's error if it was a failed trial.

        Args:
            trial: what `claim` returned.
            opening: how often the breaker had opened when the call began.
            error: what the call raised.
            late: whether it took longer than it may.
        """
        excluded = error is not None and self._says_nothing(error)
        if error is None:
            self._called("success")
        else:
            self._called("excluded" if excluded else "timeout" if late else "failure")
        if not trial and error is None and not self._storage.record.failures:
            return None
        with self._lock:
            before = self._storage.record
            failed_trial = self._leave(trial, opening, error, excluded=excluded)
            after = self._storage.record
        self._tell(before, after, None if error is None else str(error) or type(error).__name__)
        return failed_trial

    async def told(self) -> None:
        """Return when the others know of what has failed here, or can't be told for now.

        Then whoever has failed meets the breaker that opened meanwhile, before it calls again.
        """
        if self.peers is not None and not self.is_told():
            await self.peers.told()

    def _take_place(self) -> Record | None:
        with self._lock:
            if self.is_closed:
                return None
            if wait := self._wait():
                raise CircuitOpen(self.policy.name, wait)
            self._trial = True
            record = self._storage.record
            return msgspec.structs.replace(
                record, state=HALF_OPEN, trial=record.trial + 1, claimed_by=self._me, by=self._me
            )

    def _begin_trial(self, claim: Record, won: bool) -> bool:
        with self._lock:
            before = self._storage.record
            if won and claim.age > before.age:
                # Nobody could be asked.
                self._storage.move(claim)
                self._settle()
            after = self._storage.record
            # Also by an earlier claim of ours that was given up, and has been written since.
            if after.age != claim.age or after.claimed_by != self._me:
                self._trial = False
                if self.is_closed:
                    return False
                raise CircuitOpen(self.policy.name, self._wait() or self.policy.reset_timeout_seconds)
        self._tell(before, after)
        self._count("breaker_trials")
        _log.debug("breaker half-open", breaker=self.policy.name, trial=claim.trial)
        return True

    def _leave(
        self, trial: bool, opening: int, error: BaseException | None, *, excluded: bool
    ) -> CircuitOpen | None:
        record = self._storage.record
        if trial:
            self._trial = False
            if record.claimed_by != self._me:
                # It took so long that another cell was free to try, whose word counts now.
                return (
                    None if error is None or self.is_closed else CircuitOpen(self.policy.name, self._wait())
                )
        if excluded:
            if trial:
                self._storage.move(msgspec.structs.replace(record, claimed_by=""))
                self._settle()
            return None
        if not trial and (record.state != CLOSED or record.opening != opening):
            # It began before the breaker opened: only trials decide since.
            return None
        # pybreaker raises the error again, or its own in its place; the caller has the original.
        raised = () if error is None else (type(error), pybreaker.CircuitBreakerError)
        with contextlib.suppress(*raised), self._breaker.calling():
            if error is not None:
                raise error
        self._settle(mine=trial and error is not None)
        return CircuitOpen(self.policy.name, self._wait()) if trial and error is not None else None

    def _says_nothing(self, error: BaseException) -> bool:
        if not isinstance(error, Exception) or isinstance(error, _OWN_WORDS):
            return True
        try:
            return self.policy.is_excluded(error)
        except Exception:  # noqa: BLE001, a user's function may raise anything
            _log.exception("whether an error is excluded can't be told", breaker=self.policy.name)
            return False

    # What the cells tell each other

    def hear(self, record: Record, *, live: bool) -> None:
        """Take over what another cell has written, or this one before.

        Args:
            record: as it stands in the bucket.
            live: whether it was written just now.
        """
        why = None
        with self._lock:
            before = self._storage.record
            if self._storage.adopt(record):
                self._storage.notice(self._breaker)
                self._settle(age_seconds=0.0 if live else max(0.0, time.time() - record.opened_at))
            self._give_back_unused()
            known = self._storage.record
            if known.state == CLOSED and known.failures >= self.policy.fail_max:
                # Together with others' failures, which were counted meanwhile.
                self._breaker.open()
                self._settle()
            elif self._is_predecessor(known.claimed_by):
                # It died in its trial; the service has had the call, and is left alone as after a failed one.
                self._breaker.open()
                self._settle(mine=True)
                why = "the cell that tried it has died"
            after = self._storage.record
        self._tell(before, after, why)

    def _is_predecessor(self, claimed_by: str) -> bool:
        """Return whether a claim is of the cell that this one has replaced, which is dead then."""
        cell, _, _ = self._me.rpartition(".")
        return bool(cell) and claimed_by != self._me and claimed_by.rpartition(".")[0] == cell

    def _give_back_unused(self) -> None:
        """Let others try if we have a claim and no trial: it was written when we waited for it no more."""
        record = self._storage.record
        if record.claimed_by == self._me and not self._trial:
            self._storage.move(msgspec.structs.replace(record, claimed_by=""))
            self._settle()

    def take(self) -> Record | None:
        """Return what is to be written; None if the others know everything."""
        with self._lock:
            return self._storage.take()

    def put_back(self) -> None:
        """Hear that what was taken could not be written."""
        with self._lock:
            self._storage.put_back()

    def is_told(self) -> bool:
        """Return whether the others know everything."""
        with self._lock:
            return self._storage.is_told()

    def is_urgent(self) -> bool:
        """Return whether the others must hear at once what they don't know."""
        with self._lock:
            return self._storage.is_urgent()

    def _settle(self, *, age_seconds: float = 0.0, mine: bool = False) -> None:
        """Work out when the next trial may be claimed.

        Args:
            age_seconds: how long ago the breaker came to its state.
            mine: whether a trial of this cell has just failed.
        """
        record, seconds = self._storage.record, 0.0
        if record.state == OPEN:
            reset = self.policy.reset_timeout_seconds
            # Others' clocks may be wrong.
            seconds = max(0.0, reset - age_seconds)
            if mine and self.peers is not None:
                seconds += min(LAST_IN_LINE_SECONDS, reset * LAST_IN_LINE_SHARE)
        elif record.claimed_by:
            seconds = self._lease_seconds
        self._due = time.monotonic() + seconds
        self.is_closed = record.state == CLOSED

    def _wait(self) -> float:
        if self._trial:
            return self.policy.reset_timeout_seconds
        return max(0.0, self._due - time.monotonic())

    def _tell(self, before: Record, after: Record, why: str | None = None) -> None:
        """Say what has changed: to the log, to the cell and to the other cells."""
        if after.age != before.age:
            self._log(before, after, why)
            self._changed(self.policy.name)
        if self.peers is not None and not self.is_told():
            self.peers.tell()

    def _log(self, before: Record, after: Record, why: str | None) -> None:
        mine = after.by == self._me
        if after.state == OPEN and after.opening != before.opening:
            if mine:
                self._count("breaker_openings")
            # That it goes on being open is no news: an outage has a failed trial each reset timeout.
            if before.state != CLOSED:
                if mine:
                    _log.debug("breaker trial failed", breaker=self.policy.name, error=why)
            elif mine:
                _log.warning(
                    "breaker open",
                    breaker=self.policy.name,
                    error=why,
                    retry_after_seconds=self.policy.reset_timeout_seconds,
                )
            else:
                _log.warning("breaker open", breaker=self.policy.name, told_by=after.by)
        elif after.state == CLOSED and before.state != CLOSED:
            told_by = {} if mine else {"told_by": after.by}
            # By the opener's clock, which may be ahead of ours.
            seconds = round(max(0.0, time.time() - before.since), 1)
            if mine:
                self._count("breaker_closings")
            _log.info("breaker closed", breaker=self.policy.name, after_seconds=seconds, **told_by)
