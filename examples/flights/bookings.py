"""The service's account of what was ordered for bookings and cancelled: seats, charges and messages."""

import sqlite3
import threading
from typing import Any, NamedTuple

from understudy.examples.flights.trouble import Fate, Trouble

# With what it says when it refuses an order.
ACCOUNTS = {"seats": "no seat is left", "charges": "the card was declined", "messages": "no such address"}


class Entry(NamedTuple):
    """One line: what an order or a cancellation has changed.

    A cancellation takes back what the orders before it have come to, be it nothing.
    """

    number: int
    account: str
    booking: str
    amount: int


class Result(NamedTuple):
    """What became of a request, the number of its entry if there is one, and why it was refused."""

    fate: Fate
    entry: int = 0
    error: str = ""


class Bookings:
    """Every request that came, and what it has changed, once for each key; safe for threads.

    Args:
        path: of the SQLite file, which outlives the service; ":memory:" keeps nothing.

    Attributes:
        trouble: what goes wrong from now on.
    """

    def __init__(self, path: str = ":memory:") -> None:
        self.trouble = Trouble()
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False)
        self._database.executescript(
            """
            PRAGMA journal_mode = WAL;
            PRAGMA synchronous = NORMAL;
            CREATE TABLE IF NOT EXISTS entries
                (number INTEGER PRIMARY KEY, key TEXT UNIQUE, account TEXT, booking TEXT, amount INTEGER);
            CREATE TABLE IF NOT EXISTS booking_requests (number INTEGER PRIMARY KEY, key TEXT, fate TEXT);
            CREATE INDEX IF NOT EXISTS booking_requests_by_key ON booking_requests (key);
            """
        )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def order(self, key: str, account: str, booking: str, amount: int, *, down: bool = False) -> Result:
        """Do what is asked for, unless its key is known, or trouble or an outage is in the way."""
        return self._accept(key, account, booking, amount, down)

    def cancel(self, key: str, account: str, booking: str, *, down: bool = False) -> Result:
        """Undo what was ordered for a booking; an order that comes later is refused."""
        return self._accept(key, account, booking, None, down)

    def entries(self) -> list[Entry]:
        """All of them, in order."""
        with self._lock:
            rows = self._database.execute(
                "SELECT number, account, booking, amount FROM entries ORDER BY number"
            )
            return [Entry(*row) for row in rows]

    def fates(self) -> dict[Fate, int]:
        """How many requests came to which fate."""
        with self._lock:
            found = dict(self._database.execute("SELECT fate, count(*) FROM booking_requests GROUP BY fate"))
        return {fate: found.get(fate, 0) for fate in Fate}

    def _accept(self, key: str, account: str, booking: str, amount: int | None, down: bool) -> Result:
        # The request and what it changes are one transaction.
        with self._lock, self._database:
            result = Result(Fate.DOWN) if down else self._result(key, account, booking, amount)
            self._database.execute(
                "INSERT INTO booking_requests (key, fate) VALUES (?, ?)", (key, result.fate)
            )
        return result

    def _result(self, key: str, account: str, booking: str, amount: int | None) -> Result:
        known = self._value("SELECT number FROM entries WHERE key = ?", key)
        if known is None and amount is not None:
            if self.trouble.refuses(key):
                return Result(Fate.REFUSED, error=ACCOUNTS[account])
            cancelled = "SELECT number FROM entries WHERE account = ? AND booking = ? AND amount <= 0"
            if self._value(cancelled, account, booking):
                return Result(Fate.REFUSED, error="it is cancelled already")
        before = self._value("SELECT count(*) FROM booking_requests WHERE key = ?", key)
        fate = self.trouble.fate(key, before)
        if fate not in (Fate.WORKS, Fate.LIES):
            return Result(fate)
        if known is not None:
            return Result(Fate.REPEATED if fate is Fate.WORKS else fate, known)
        if amount is None:
            ordered = "SELECT coalesce(sum(amount), 0) FROM entries WHERE account = ? AND booking = ?"
            amount = -self._value(ordered, account, booking)
        self._database.execute(
            "INSERT INTO entries (key, account, booking, amount) VALUES (?, ?, ?, ?)",
            (key, account, booking, amount),
        )
        return Result(fate, self._value("SELECT last_insert_rowid()"))

    def _value(self, query: str, *values: object) -> Any:
        """Return the one value that a query finds; None if it finds nothing."""
        row = self._database.execute(query, values).fetchone()
        return None if row is None else row[0]
