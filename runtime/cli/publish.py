"""`understudy publish`: put JSON into a stream, one body or a file of them, each confirmed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import msgspec
import typer

from understudy.actors.errors import BrokerError, ConfigurationError, DecodeError, PublishError
from understudy.runtime.cli.options import ConfigFile, Servers, remedies, settings_from
from understudy.runtime.cli.progress import progress_bar
from understudy.runtime.telemetry.publishing import tracing_command

if TYPE_CHECKING:
    from understudy.config.connection import ConnectionSpec
    from understudy.runtime.jetstream.publisher import Publisher

# As many as the publisher's own window holds; more would only wait there.
IN_FLIGHT = 1024
# How long what is on its way may take to be confirmed when Ctrl-C ends it; a second Ctrl-C ends it at once.
INTERRUPTED_SECONDS = 2.0
_CHUNK_BYTES = 64 * 1024
JSON_HEADERS = {"Content-Type": "application/json"}


def publish(
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="Where to, like flights.departed.", show_default=False)
    ],
    body: Annotated[
        str | None, typer.Option("--json", metavar="TEXT", help="One body.", show_default=False)
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", metavar="FILE", help="A file of bodies, one a line; - is stdin.", show_default=False
        ),
    ] = None,
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Publish JSON events, each confirmed by its stream.

    Example: understudy publish flights.departed --json '{"carrier": "UA", "delay_minutes": 75}'

    A file has one JSON value a line (NDJSON); a line that fails is named on stderr and the others go on. The
    count is printed on stdout.
    """
    if (body is None) == (file is None):
        raise ConfigurationError("give either --json TEXT or --file FILE (- for stdin)")
    check_subject(subject)
    with ExitStack() as stack:
        if body is None:
            lines = _lines(stack.enter_context(_open(str(file))))
        else:
            problem = json_problem(body.encode())
            if problem:
                raise DecodeError(f"--json {problem}")
            lines = _only(body.encode())
        settings = settings_from(config, {"nats.servers": servers}, quiet=True)
        with remedies(settings), tracing_command("understudy-publish"):
            counts = asyncio.run(_publish_all(settings.connection(), subject, lines, show_lines=body is None))
    typer.echo(str(counts))
    return counts.status


@dataclass
class Counts:
    """What became of the lines.

    Attributes:
        published: confirmed by a stream.
        malformed: not JSON, not sent.
        refused: sent and not confirmed.
    """

    published: int = 0
    malformed: int = 0
    refused: int = 0
    running: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    @property
    def status(self) -> int:
        """The exit status: 3 if the broker refused any, 2 if only the input was at fault."""
        return 3 if self.refused else 2 if self.malformed else 0

    def __str__(self) -> str:
        """Say how many, and what failed only if something did."""
        parts = [f"{self.published} published"]
        parts += [f"{self.malformed} malformed"] if self.malformed else []
        parts += [f"{self.refused} refused"] if self.refused else []
        return ", ".join(parts)


async def _publish_all(
    connection: ConnectionSpec, subject: str, lines: AsyncIterator[tuple[int, bytes]], *, show_lines: bool
) -> Counts:
    from understudy.runtime.jetstream.publisher import Publisher

    counts = Counts()
    async with Publisher.connect(connection, source="understudy-publish") as publisher:
        with progress_bar() as progress:
            bar = progress.add_task("publishing", total=None, visible=show_lines)

            def say(number: int, text: str) -> None:
                progress.console.print(
                    f"line {number}: {text}" if show_lines else text, markup=False, soft_wrap=True
                )

            try:
                async for number, line in lines:
                    problem = json_problem(line)
                    if problem:
                        counts.malformed += 1
                        say(number, problem)
                        continue
                    if len(counts.running) >= IN_FLIGHT:
                        await asyncio.wait(counts.running, return_when=asyncio.FIRST_COMPLETED)
                    task = asyncio.create_task(_publish_one(publisher, subject, number, line, counts, say))
                    counts.running.add(task)
                    task.add_done_callback(counts.running.discard)
                    progress.update(bar, completed=counts.published)
                while counts.running:
                    await asyncio.wait(counts.running, timeout=0.2)
                    progress.update(bar, completed=counts.published)
            except asyncio.CancelledError:
                # Else a line that the stream has would be said to be refused.
                if counts.running:
                    await asyncio.wait(counts.running, timeout=INTERRUPTED_SECONDS)
                raise
    return counts


async def _publish_one(
    publisher: Publisher,
    subject: str,
    number: int,
    line: bytes,
    counts: Counts,
    say: Callable[[int, str], None],
) -> None:
    try:
        await publisher.publish_raw(subject, line, JSON_HEADERS)
    except (PublishError, BrokerError) as error:
        counts.refused += 1
        say(number, str(error))
    else:
        counts.published += 1


def check_subject(subject: str) -> None:
    """Raises ConfigurationError if nothing can be published to a subject."""
    from understudy.actors.subjects import MAX_SUBJECT_LENGTH, is_plain

    if len(subject) > MAX_SUBJECT_LENGTH or not all(is_plain(token) for token in subject.split(".")):
        raise ConfigurationError(
            f"{subject!r} is no subject to publish to: tokens joined by dots, without blanks, * or >"
        )


def _open(name: str) -> BinaryIO:
    if name == "-":
        return sys.stdin.buffer
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise ConfigurationError(f"--file {name}: {error.strerror}") from error


async def _only(body: bytes) -> AsyncIterator[tuple[int, bytes]]:
    yield 1, body


async def _lines(file: BinaryIO) -> AsyncIterator[tuple[int, bytes]]:
    """Yield each line that isn't blank with its number, as soon as it is there.

    What comes through a pipe comes when it likes: the events before it must not wait for it.
    """
    descriptor, number, rest = file.fileno(), 0, bytearray()
    while True:
        await _until_readable(descriptor)
        chunk = os.read(descriptor, _CHUNK_BYTES)
        rest += chunk
        if chunk and b"\n" not in chunk:
            continue
        *whole, rest = rest.split(b"\n") if chunk else [rest, bytearray()]
        for line in whole:
            number += 1
            if text := bytes(line.strip()):
                yield number, text
        if not chunk:
            return


async def _until_readable(descriptor: int) -> None:
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(descriptor, readable.set)
    except PermissionError:
        # epoll takes no regular file, and reading one doesn't block.
        await asyncio.sleep(0)
        return
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def json_problem(body: bytes) -> str:
    """Return why a body is no JSON; empty if it is."""
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        return f"is not JSON: {error}"
    return ""
