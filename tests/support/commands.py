"""`understudy` commands, each in a process of its own that a warm one has forked.

To import the command line takes most of a second of a core, and a command that asks a broker something a
tenth of it. What is tested here is what a command does and says; that one starts by `python -m` is seen by
those tests that interrupt it or pipe into it.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from understudy.runtime.cli.entry import main
from understudy.runtime.jetstream import services

_warm = multiprocessing.get_context("forkserver")
_warm.set_forkserver_preload(
    ["understudy.runtime.cli.entry", "understudy.config.load", "understudy.runtime.telemetry.logs"]
)


def run_command(
    *arguments: str,
    environment: Mapping[str, str] = os.environ,
    directory: Path | None = None,
    timeout_seconds: float = 60.0,
    answer_seconds: float = services.ANSWER_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run `understudy` with nothing to read, and return how it ended.

    Args:
        arguments: what follows the command's name.
        environment: all of it.
        directory: where it works.
        timeout_seconds: how long it may take.
        answer_seconds: how long it waits for a node that doesn't answer.
    """
    with tempfile.TemporaryDirectory() as output:
        out, err = Path(output, "out"), Path(output, "err")
        process = _warm.Process(
            target=_run,
            args=(arguments, dict(environment), directory or Path.cwd(), out, err, answer_seconds),
            daemon=True,
        )
        process.start()
        process.join(timeout_seconds)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"{arguments} didn't end within {timeout_seconds:g} s: {err.read_text()}")
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def _run(
    arguments: tuple[str, ...],
    environment: dict[str, str],
    directory: Path,
    out: Path,
    err: Path,
    answer_seconds: float,
) -> None:
    for descriptor, path, flags in (
        (0, Path(os.devnull), os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT),
        (2, err, os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    services.ANSWER_SECONDS = answer_seconds
    sys.exit(main(arguments))
