"""What a demonstration shows while it runs: lines and bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Screen:
    """Standard error, as a terminal or as a plain file; a context manager.

    Args:
        total: how many departures there are.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._started = time.monotonic()
        self._shown = 0
        # Off a terminal a line stays a line, however long.
        self._console = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> Self:
        """Start."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        self._bars.stop()

    def say(self, text: str) -> None:
        """Show one thing that happened, with the seconds since the start."""
        line = f"{time.monotonic() - self._started:6.1f} s  {text}"
        self._console.print(escape(line), soft_wrap=True)

    def start_bars(self) -> None:
        """Show how far it is from now on; starts a thread, so not before all processes are started."""
        self._published = self._bars.add_task("published", total=self._total)
        self._counted = self._bars.add_task("counted", total=self._total)
        self._bars.start()

    def advance(self, *, published: int, counted: int) -> None:
        """Move the bars; off a terminal, say so at each tenth."""
        self._bars.update(self._published, completed=published)
        self._bars.update(self._counted, completed=counted)
        tenth = published * 10 // self._total
        if self._bars.disable and tenth > self._shown:
            self._shown = tenth
            self.say(f"{published:,} of {self._total:,} published, {counted:,} counted")
