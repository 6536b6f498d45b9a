"""Where a command's data goes: stdout, or a file that takes its name when it is complete."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from understudy.actors.errors import ConfigurationError


@contextlib.contextmanager
def output(name: str) -> Iterator[Callable[[bytes], object]]:
    """Yield what writes to stdout or to a file, which takes its name at the end."""
    if name == "-":
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    path = Path(name)
    # A pipe or a device, which nothing can be put in place of.
    if path.exists() and not path.is_file():
        with _named(name), path.open("wb") as file:
            yield file.write
        return
    path = path.resolve()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _named(name):
            file = unfinished.open("xb")
        with file:
            yield file.write
            with _named(name):
                file.flush()
                os.fsync(file.fileno())
        with _named(name):
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"--file {name}: {error.strerror}") from error
