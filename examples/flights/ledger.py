"""The service's account of the notices that it was asked for, and of those that it has sent."""

import json
import sqlite3
import threading
import time
from http import HTTPStatus
from typing import Any


class Ledger:
    """Every request that came, and each notice that was sent; safe for threads.

    Args:
        path: of the SQLite file, which outlives the service; ":memory:" keeps nothing.
    """

    def __init__(self, path: str = ":memory:") -> None:
        self._lock = threading.Lock()
        self._down_until = 0.0
        self._database = sqlite3.connect(path, check_same_thread=False)
        # Without a sync per request the file survives the death of the process, though not of the machine.
        self._database.executescript(
            """
            PRAGMA journal_mode = WAL;
            PRAGMA synchronous = NORMAL;
            CREATE TABLE IF NOT EXISTS sent (key TEXT PRIMARY KEY, notice TEXT) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS requests (number INTEGER PRIMARY KEY, key TEXT, answer INTEGER);
            """
        )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def go_down(self, seconds: float) -> None:
        """Refuse every notice for so long."""
        with self._lock:
            self._down_until = time.monotonic() + seconds

    @property
    def is_down(self) -> bool:
        """Whether it refuses everything at the moment."""
        return time.monotonic() < self._down_until

    def accept(self, key: str, notice: Any) -> HTTPStatus:
        """Send a notice, unless the service is down, or the key was used before; and write the request down.

        To send is to write a line here: both tables change in one transaction.
        """
        if not key:
            return HTTPStatus.BAD_REQUEST
        with self._lock, self._database:
            answer = self._answer(key, json.dumps(notice, sort_keys=True))
            self._database.execute("INSERT INTO requests (key, answer) VALUES (?, ?)", (key, answer.value))
        return answer

    def report(self) -> dict[str, Any]:
        """All notices that were sent, by key; how many requests came, and how many of them had which answer.

        `repeated` were known by their key, `refused` came during an outage, and `conflicts` had another
        notice than the one that was sent under their key.
        """
        with self._lock:
            notices = self._database.execute("SELECT key, notice FROM sent").fetchall()
            answers = dict(self._database.execute("SELECT answer, count(*) FROM requests GROUP BY answer"))
        return {
            "notices": {key: json.loads(notice) for key, notice in notices},
            "requests": sum(answers.values()),
            "repeated": answers.get(HTTPStatus.OK, 0),
            "refused": answers.get(HTTPStatus.SERVICE_UNAVAILABLE, 0),
            "conflicts": answers.get(HTTPStatus.CONFLICT, 0),
        }

    def _answer(self, key: str, notice: str) -> HTTPStatus:
        if self.is_down:
            return HTTPStatus.SERVICE_UNAVAILABLE
        new = self._database.execute("INSERT OR IGNORE INTO sent VALUES (?, ?)", (key, notice)).rowcount
        if new:
            return HTTPStatus.CREATED
        ((sent,),) = self._database.execute("SELECT notice FROM sent WHERE key = ?", (key,))
        return HTTPStatus.OK if sent == notice else HTTPStatus.CONFLICT
