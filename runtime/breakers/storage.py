"""pybreaker's storage on a record that many cells share: read at once from a copy, written behind."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pybreaker

from understudy.runtime.breakers.record import CLOSED, HALF_OPEN, OPEN, Record


class SharedStorage(pybreaker.CircuitBreakerStorage):
    """The copy of one breaker's record, and what of it the others haven't heard yet.

    Not safe for threads by itself: its breaker has a lock.

    Args:
        me: names this cell in what it writes.

    Attributes:
        record: the breaker's state as this cell knows it, its own doings included.
    """

    def __init__(self, me: str) -> None:
        super().__init__("shared")
        self._me = me
        self.record = Record()
        self._heard = Record()
        # What happened here since: failures, and whether a success has come before them.
        self._added = 0
        self._cleared = False
        self._flying: tuple[Record, Record, int, bool] | None = None
        self._opened_at = 0.0
        self._is_noticing = False

    # pybreaker's interface

    @property
    def state(self) -> str:
        """The breaker's state."""
        return self.record.state

    @state.setter
    def state(self, state: str) -> None:
        record = self.record
        if state == record.state:
            # Noticed, or another cell's doing.
            return
        if state == OPEN:
            self.move(
                Record(
                    state=OPEN,
                    opening=record.opening + 1,
                    opened_at=self._opened_at,
                    since=record.since or self._opened_at,
                )
            )
        elif state == CLOSED:
            self.move(Record(state=CLOSED, opening=record.opening, trial=record.trial))
        else:
            self.move(msgspec.structs.replace(record, state=HALF_OPEN))

    def increment_counter(self) -> None:
        """Count a failure; of a trial's nobody needs to know, since it opens the breaker."""
        if self.record.state == CLOSED:
            self._added += 1
            self._recount()

    def reset_counter(self) -> None:
        """Begin to count failures anew."""
        if self.record.failures and not self._is_noticing:
            self._added, self._cleared = 0, True
            self._recount()

    def increment_success_counter(self) -> None:
        """Count a trial that succeeded, and end it."""
        record = self.record
        self.move(msgspec.structs.replace(record, successes=record.successes + 1, claimed_by=""))

    def reset_success_counter(self) -> None:
        """Do nothing: an opening does it, and pybreaker also asks for it when it only notices a state."""

    @property
    def counter(self) -> int:
        """Failures in a row."""
        return self.record.failures

    @property
    def success_counter(self) -> int:
        """Trials in a row that succeeded."""
        return self.record.successes

    @property
    def opened_at(self) -> datetime | None:
        """When it last opened."""
        return datetime.fromtimestamp(self.record.opened_at, UTC) if self.record.opened_at else None

    @opened_at.setter
    def opened_at(self, moment: datetime) -> None:
        self._opened_at = moment.timestamp()

    # What the cells tell each other

    def move(self, record: Record) -> None:
        """Have the breaker come further, by this cell's doing."""
        self.record = msgspec.structs.replace(record, by=self._me)
        self._added, self._cleared = 0, False

    def adopt(self, record: Record) -> bool:
        """Hear of a record that another cell wrote, or that was found in the bucket.

        Returns:
            Whether the breaker has come further by it.
        """
        self._heard = record
        if record.age < self.record.age:
            return False
        further = record.age > self.record.age
        if further:
            self._added, self._cleared = 0, False
        self.record = record
        self._recount()
        return further

    def notice(self, breaker: pybreaker.CircuitBreaker) -> None:
        """Have pybreaker follow a state that another cell has brought about, without its resetting counts."""
        self._is_noticing = True
        try:
            _ = breaker.state
        finally:
            self._is_noticing = False

    def is_told(self) -> bool:
        """Return whether everything is written, or being written."""
        return self.record.age == self._heard.age and self.record.failures == self._heard.failures

    def is_urgent(self) -> bool:
        """Return whether more is to be written than that failures are forgiven."""
        return self._added > 0 or self.record.age != self._heard.age

    def take(self) -> Record | None:
        """Return what is to be written, None if there is nothing; until it is, it counts as heard."""
        if self.is_told():
            return None
        self._flying = (self.record, self._heard, self._added, self._cleared)
        self._heard = self.record
        self._added, self._cleared = 0, False
        return self.record

    def put_back(self) -> None:
        """Hear that what was taken could not be written."""
        assert self._flying is not None
        written, heard, added, cleared = self._flying
        if self._heard is written:
            # Nothing was heard meanwhile.
            self._heard = heard
        if self.record.state == CLOSED and self.record.opening == written.opening:
            if not self._cleared:
                self._added, self._cleared = self._added + added, cleared
            self._recount()

    def _recount(self) -> None:
        failures = (0 if self._cleared else self._heard.failures) + self._added
        self.record = msgspec.structs.replace(self.record, failures=failures)
