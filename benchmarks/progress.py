"""How far a benchmark is, on stderr: a line for each result, and for what takes long."""

from __future__ import annotations

import sys
import time

# How often what takes long says so where lines can't be overwritten.
EVERY_SECONDS = 10.0
REDRAW_SECONDS = 0.2
_ERASE = "\r\x1b[K"


class Progress:
    """Writes results as lines, and between them, on a terminal, what is being done at the moment."""

    def __init__(self) -> None:
        self._what = ""
        self._is_terminal = sys.stderr.isatty()
        self._next = 0.0

    def say(self, text: str) -> None:
        """Write a line."""
        print(_ERASE * self._is_terminal + text, file=sys.stderr, flush=True)
        self._what = ""

    def begin(self, what: str) -> None:
        """Hear what is done until the next line.

        Args:
            what: goes before what `at` is told.
        """
        self._what = what
        self._next = 0.0 if self._is_terminal else time.monotonic() + EVERY_SECONDS
        self.at("…")

    def at(self, how_far: str) -> None:
        """Hear how far it is; cheap enough to be told often."""
        now = time.monotonic()
        if now < self._next:
            return
        if self._is_terminal:
            self._next = now + REDRAW_SECONDS
            print(f"{_ERASE}{self._what}{how_far}", end="", file=sys.stderr, flush=True)
        else:
            self._next = now + EVERY_SECONDS
            print(f"{self._what}{how_far}", file=sys.stderr, flush=True)
