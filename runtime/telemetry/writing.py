"""Writing entries: as JSON for machines, in columns for people; a failure costs an entry and nothing else."""

from __future__ import annotations

import io
import os
from typing import TextIO

import msgspec
import structlog

from understudy.runtime.telemetry.entries import Entry


class Writer:
    """Writes one entry a line; never raises for a stream that takes none.

    What could not be written is counted, and told by the first entry that can be.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = 0
        self._is_broken = False

    def __call__(self, entry: Entry) -> None:
        """Write an entry."""
        if self._lost:
            entry = {**entry, "lost_before": self._lost}
        try:
            # Half a line may be there of the one before.
            self._put(b"\n" * self._is_broken + self._line(entry))
        except (OSError, ValueError):
            # Full, closed, or nobody reads it.
            self._lost += 1
        else:
            self._lost = 0

    def _line(self, entry: Entry) -> bytes:
        return _json(entry) + b"\n"

    def _put(self, line: bytes) -> None:
        try:
            # A ValueError if it is closed, and the descriptor perhaps another file's.
            descriptor = self._stream.fileno()
        except io.UnsupportedOperation:
            self._stream.write(line.decode("utf-8"))
            self._stream.flush()
            return
        # Past the stream's buffer, which a fork would copy: a line is one write, so that those of several
        # processes stay apart.
        self._stream.flush()
        while line:
            written = os.write(descriptor, line)
            line = line[written:]
            self._is_broken = bool(line)


class ConsoleWriter(Writer):
    """Writes entries for people, with colours on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._render = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(),
            timestamp_key="time",
            # The default one prints every frame's local variables: pages of them, secrets included.
            exception_formatter=structlog.dev.plain_traceback,
        )

    def _line(self, entry: Entry) -> bytes:
        # Which node and which module it is matters where entries of several come together.
        fields = {name: value for name, value in entry.items() if name not in ("node", "logger")}
        return _bytes(str(self._render(None, entry["level"], fields))) + b"\n"


def _json(entry: Entry) -> bytes:
    try:
        return msgspec.json.encode(entry)
    except UnicodeEncodeError:
        # A lone surrogate, which no reader of JSON takes.
        return msgspec.json.encode(_cleaned(entry))


def _cleaned(value: object) -> object:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_cleaned(key): _cleaned(inner) for key, inner in value.items()}
        case list():
            return [_cleaned(inner) for inner in value]
        case _:
            return value


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
