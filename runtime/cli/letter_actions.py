"""What the dead-letter commands do over a connection of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import msgspec
import typer

from understudy.actors.errors import BrokerError, ConfigurationError
from understudy.runtime.cli.letter_views import readable, whole
from understudy.runtime.cli.nodes import NotThereError
from understudy.runtime.cli.progress import progress_bar
from understudy.runtime.jetstream.connection import close, connect
from understudy.runtime.jetstream.letter_stream import LetterStream
from understudy.runtime.jetstream.originals import Originals
from understudy.runtime.jetstream.replay import Replay, ReplayCounts, Unreplayable
from understudy.runtime.jetstream.stored_letters import Selection, StoredLetter

if TYPE_CHECKING:
    from understudy.config.connection import ConnectionSpec

# So many are removed at once.
_REMOVALS = 128


class Chosen(msgspec.Struct, frozen=True):
    """The letters that a command is about: some ids, or what a selection fits.

    Args:
        ids: which; none if the selection says.
        selection: of all.
    """

    ids: list[int]
    selection: Selection

    def until(self, last: int) -> Chosen:
        """Return the same but for what comes after an id."""
        return Chosen(self.ids, msgspec.structs.replace(self.selection, last=last))

    async def read(
        self, letters: LetterStream, missing: Callable[[int], None], *, bodies: bool
    ) -> AsyncIterator[StoredLetter]:
        """Go through them, oldest first.

        Args:
            letters: where they are.
            missing: called with an id that isn't there.
            bodies: whether theirs are read, too.
        """
        if not self.ids:
            async for letter in letters.scan(self.selection, bodies=bodies):
                yield letter
            return
        for number in sorted(set(self.ids)):
            found = await letters.read(number)
            if found is None:
                missing(number)
            else:
                yield found


class _Errors:
    """Names on stderr what fails, above the progress bar if there is one.

    Attributes:
        count: how many have.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self.count = 0

    def letter(self, number: int, problem: str) -> None:
        """Name a letter and what is wrong with it."""
        self.count += 1
        self._show(f"dead letter {number}: {readable(problem)}")

    def incomplete(self, letter: StoredLetter) -> None:
        """Say of a letter which of the original's headers a replay lacks; that is no failure."""
        if letter.headers_left_out:
            names = readable(", ".join(letter.headers_left_out))
            self._show(
                f"dead letter {letter.id}: a replay lacks the headers that were left out of it: {names}"
            )

    def missing(self, number: int) -> None:
        """Name a letter that isn't there."""
        self.letter(number, "there is none of that number")


class Pace:
    """Lets so many through in a second, evenly.

    Args:
        rate: how many; None for any number.
    """

    def __init__(self, rate: float | None) -> None:
        self._interval = 0.0 if rate is None else 1 / rate
        self._next = 0.0

    async def wait(self) -> None:
        """Return when the next one may go."""
        if not self._interval:
            return
        now = asyncio.get_running_loop().time()
        at = max(self._next, now)
        self._next = at + self._interval
        await asyncio.sleep(at - now)


async def list_newest(
    spec: ConnectionSpec, app: str | None, selection: Selection, limit: int
) -> tuple[list[StoredLetter], int]:
    """Return the newest letters, the newest first, and how many there are in all."""
    newest: deque[StoredLetter] = deque(maxlen=limit)
    total = 0
    async with _open(spec, app) as letters:
        async for letter in letters.scan(selection, bodies=False):
            newest.appendleft(letter)
            total += 1
    return list(newest), total


async def read_whole(
    spec: ConnectionSpec, app: str | None, number: int
) -> tuple[StoredLetter, bytes | None] | None:
    """Return a letter and its original's body, None for a body that is gone; or None for no letter."""
    async with _open(spec, app) as letters:
        letter = await letters.read(number)
        return None if letter is None else (letter, await Originals(letters.client).body(letter))


async def replay(
    spec: ConnectionSpec, app: str | None, chosen: Chosen, *, rate: float | None, keep: bool
) -> int:
    """Replay letters, print how many were, and return the exit code."""
    async with _open(spec, app) as letters:
        with _progress("replaying", letters, chosen) as (errors, advance):
            replaying = Replay(letters, keep=keep, failed=errors.letter)
            await replaying.open()
            pace = Pace(rate)
            try:
                async for letter in chosen.read(letters, errors.missing, bodies=True):
                    await pace.wait()
                    errors.incomplete(letter)
                    await replaying.put(letter)
                    advance()
            finally:
                # Interrupted, too: what is on its way is removed once it is confirmed.
                await replaying.finish()
                typer.echo(_result(replaying.counts, errors.count))
    return 1 if errors.count else 0


async def would_replay(spec: ConnectionSpec, app: str | None, chosen: Chosen) -> int:
    """Print what a replay would do, and return its exit code as far as that can be told."""
    counts: Counter[tuple[str, str]] = Counter()
    async with _open(spec, app) as letters:
        with _progress("looking", letters, chosen) as (errors, advance):
            replaying = Replay(letters, keep=True, failed=errors.letter)
            async for letter in chosen.read(letters, errors.missing, bodies=False):
                advance()
                try:
                    await replaying.body(letter)
                except Unreplayable as problem:
                    errors.letter(letter.id, str(problem))
                else:
                    errors.incomplete(letter)
                    counts[letter.durable, letter.stream] += 1
    for (durable, stream), count in sorted(counts.items()):
        typer.echo(f"would replay {count} to stream {stream} for {durable}")
    if not counts:
        typer.echo("would replay 0")
    return 1 if errors.count else 0


async def count(spec: ConnectionSpec, app: str | None, chosen: Chosen) -> tuple[Counter[str], int]:
    """Return how many letters of each actor are chosen, and the newest one's id."""
    counts: Counter[str] = Counter()
    newest = 0
    async with _open(spec, app) as letters:
        async for letter in chosen.read(letters, lambda _: None, bodies=False):
            counts[letter.actor] += 1
            newest = letter.id
    return counts, newest


async def discard(spec: ConnectionSpec, app: str | None, chosen: Chosen) -> int:
    """Remove letters, print how many were, and return the exit code."""
    discarded = 0
    running: set[asyncio.Task[None]] = set()
    async with _open(spec, app) as letters:
        with _progress("discarding", letters, chosen) as (errors, advance):

            async def remove(number: int) -> None:
                nonlocal discarded
                try:
                    if await letters.remove(number):
                        discarded += 1
                except BrokerError as error:
                    errors.letter(number, str(error))
                advance()

            try:
                async for letter in chosen.read(letters, errors.missing, bodies=False):
                    running.add(asyncio.create_task(remove(letter.id)))
                    if len(running) >= _REMOVALS:
                        _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if running:
                    await asyncio.wait(running)
                typer.echo(f"{discarded} discarded")
    return 1 if errors.count else 0


async def export(
    spec: ConnectionSpec,
    app: str | None,
    selection: Selection,
    write: Callable[[bytes], object],
    *,
    show: bool,
) -> int:
    """Write letters as lines of JSON, and return how many.

    Args:
        spec: the broker.
        app: whose, None for the only one's.
        selection: which.
        write: takes a line.
        show: whether a bar may show how far it is.
    """
    count = 0
    async with _open(spec, app) as letters:
        originals = Originals(letters.client)
        with _progress("exporting", letters, Chosen([], selection), show=show) as (_, advance):
            async for letter in letters.scan(selection, bodies=True):
                write(msgspec.json.encode(whole(letter, await originals.body(letter))) + b"\n")
                count += 1
                advance()
    return count


@contextlib.asynccontextmanager
async def _open(spec: ConnectionSpec, app: str | None) -> AsyncIterator[LetterStream]:
    client = await connect(spec, name="understudy-dead-letters")
    try:
        try:
            letters = await LetterStream.open(client, app)
        except ConfigurationError as error:
            if app is None:
                raise
            raise NotThereError(str(error)) from error
        yield letters
    finally:
        await close(client)


@contextlib.contextmanager
def _progress(
    label: str, letters: LetterStream, chosen: Chosen, *, show: bool = True
) -> Iterator[tuple[_Errors, Callable[[], None]]]:
    """Show how far it is; yields what names failures, and what is called for each letter."""
    total: int | None = len(set(chosen.ids))
    if not chosen.ids:
        # How many filters fit isn't known before all are read.
        total = letters.count if chosen.selection.is_everything else None
    with progress_bar(wanted=show) as progress:
        bar = progress.add_task(label, total=total)

        def say(text: str) -> None:
            progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield _Errors(say), lambda: progress.advance(bar)


def _result(counts: ReplayCounts, failed: int) -> str:
    parts = [f"{counts.replayed} replayed"]
    parts += [f"{counts.repeated} had been replayed before"] if counts.repeated else []
    parts += [f"{failed} failed"] if failed else []
    return ", ".join(parts)
