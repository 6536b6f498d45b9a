"""`understudy dead-letters`: look at what was given up, give it back, or throw it away."""

from __future__ import annotations

import asyncio
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from understudy.actors.errors import ConfigurationError
from understudy.actors.names import check_name
from understudy.runtime.cli.command import Command, command_group
from understudy.runtime.cli.options import ConfigFile, Servers, ago, agreed, connection_from
from understudy.runtime.cli.output import output

if TYPE_CHECKING:
    from understudy.runtime.cli.letter_actions import Chosen
    from understudy.runtime.jetstream.stored_letters import Selection

DEFAULT_LIMIT = 50
REASONS = ("undecodable", "rejected", "exhausted", "crashed")

dead_letters = command_group(
    "dead-letters",
    "List, show, replay, discard and export what was given up.\n\n"
    "Example: understudy dead-letters list --actor billing --newer-than 2h",
)

App = Annotated[
    str | None,
    typer.Option(
        "--app", metavar="NAME", help="Whose; needed if several apps keep theirs here.", show_default=False
    ),
]
ActorName = Annotated[
    str, typer.Option("--actor", metavar="NAME", help="Only what this actor gave up.", show_default=False)
]
Reason = Annotated[
    str,
    typer.Option(
        "--reason",
        metavar="WHY",
        help="Only undecodable, rejected, exhausted or crashed ones.",
        show_default=False,
    ),
]
OlderThan = Annotated[
    str | None,
    typer.Option(
        "--older-than", metavar="AGE", help="Only older ones, like 30s, 15m, 2h, 3d, 1w.", show_default=False
    ),
]
NewerThan = Annotated[
    str | None,
    typer.Option("--newer-than", metavar="AGE", help="Only newer ones, like 15m.", show_default=False),
]
Ids = Annotated[
    list[int] | None,
    typer.Argument(metavar="ID", help="Which; 'list' shows the numbers.", min=1, show_default=False),
]
Everything = Annotated[bool, typer.Option("--all", help="All that there are.")]


@dead_letters.command("list", cls=Command)
def list_letters(
    actor: ActorName = "",
    reason: Reason = "",
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="At most so many, the newest.")
    ] = DEFAULT_LIMIT,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    app: App = None,
    config: ConfigFile = None,
    servers: Servers = None,
) -> None:
    """List dead letters, the newest first.

    Example: understudy dead-letters list --actor billing --newer-than 2h

    Reads the headers of all that may be meant, not the bodies; stderr tells how many more there are.
    """
    from understudy.runtime.cli.letter_actions import list_newest
    from understudy.runtime.cli.letter_views import COLUMNS, summary, table

    selection = _selection(actor, reason, older_than, newer_than)
    with connection_from(config, servers) as spec:
        newest, total = asyncio.run(list_newest(spec, app, selection, limit))
    if as_json:
        for letter in newest:
            typer.echo(msgspec.json.encode(summary(letter)))
    elif newest:
        columns = shutil.get_terminal_size((COLUMNS, 0)).columns if sys.stdout.isatty() else COLUMNS
        typer.echo(table(newest, columns=columns))
    if not newest:
        _say("no dead letters" if selection.is_everything else "no such dead letters")
    elif total > len(newest):
        _say(f"{total - len(newest):,} more, all older; --limit {total} shows them")


@dead_letters.command("show", cls=Command, short_help="Show all of one dead letter.")
def show_letter(
    letter: Annotated[
        int, typer.Argument(metavar="ID", min=1, help="Which; 'list' shows the numbers.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    app: App = None,
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Show all of one dead letter: why, from where, headers and the decoded body.

    Example: understudy dead-letters show 12

    A body that was too large for the letter is read from the stream that it came from, if that still has it.
    Exits 1 if there is no such letter.
    """
    from understudy.runtime.cli.letter_actions import read_whole
    from understudy.runtime.cli.letter_views import describe, whole

    with connection_from(config, servers) as spec:
        found = asyncio.run(read_whole(spec, app, letter))
    if found is None:
        _say(f"there is no dead letter {letter}; 'understudy dead-letters list' shows which there are")
        return 1
    typer.echo(msgspec.json.encode(whole(*found)) if as_json else describe(*found))
    return 0


@dead_letters.command("replay", cls=Command)
def replay_letters(
    ids: Ids = None,
    actor: ActorName = "",
    reason: Reason = "",
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    everything: Everything = False,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="N", help="At most so many a second.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be replayed, and replay nothing.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the letters in the dead-letter stream.")
    ] = False,
    app: App = None,
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Have dead letters handled again by the actors that gave them up.

    Example: understudy dead-letters replay --actor billing --reason exhausted --rate 100

    Each is published to its original subject, confirmed, and only then removed. Other actors of ours that
    take the subject skip it; consumers that aren't ours see it again, and it comes after what was published
    since. What is interrupted may be run again: within the stream's duplicate window nothing is stored twice.
    A letter that can't be replayed is named on stderr, the others go on, and the exit code is 1.
    """
    from understudy.runtime.cli.letter_actions import replay, would_replay

    _check_rate(rate)
    chosen = _chosen(ids, _selection(actor, reason, older_than, newer_than), everything=everything)
    with connection_from(config, servers) as spec:
        if dry_run:
            return asyncio.run(would_replay(spec, app, chosen))
        return asyncio.run(replay(spec, app, chosen, rate=rate, keep=keep))


@dead_letters.command("discard", cls=Command)
def discard_letters(
    ids: Ids = None,
    actor: ActorName = "",
    reason: Reason = "",
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    everything: Everything = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    app: App = None,
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Remove dead letters for good.

    Example: understudy dead-letters discard --reason undecodable --older-than 30d

    Says how many there are and asks; a script has to say --yes. Exits 1 if one of the IDs isn't there.
    """
    from understudy.runtime.cli.letter_actions import count, discard

    chosen = _chosen(ids, _selection(actor, reason, older_than, newer_than), everything=everything)
    if not yes and not sys.stdin.isatty():
        raise ConfigurationError("there is nobody to ask whether to discard them; give --yes")
    with connection_from(config, servers) as spec:
        if not yes:
            counts, newest = asyncio.run(count(spec, app, chosen))
            if not counts:
                _say("no such dead letters")
                return 1 if ids else 0
            by_actor = ", ".join(f"{number:,} of {name}" for name, number in sorted(counts.items()))
            if not agreed(f"Discard {_letters(counts.total())} for good ({by_actor})?"):
                _say("nothing discarded")
                return 0
            # What has come meanwhile was not in the question.
            chosen = chosen.until(newest)
        return asyncio.run(discard(spec, app, chosen))


@dead_letters.command("export", cls=Command, short_help="Write dead letters as NDJSON, one a line.")
def export_letters(
    actor: ActorName = "",
    reason: Reason = "",
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    file: Annotated[str, typer.Option("--file", metavar="FILE", help="Where to; - is stdout.")] = "-",
    app: App = None,
    config: ConfigFile = None,
    servers: Servers = None,
) -> None:
    """Write dead letters as NDJSON, one a line, with everything that they hold.

    Example: understudy dead-letters export --actor billing --file billing.ndjson

    Oldest first. body_encoding says what the body was: msgpack or json (then it is a JSON value), text, or
    base64. The file takes its name when it is complete. Nothing is removed.
    """
    from understudy.runtime.cli.letter_actions import export

    selection = _selection(actor, reason, older_than, newer_than)
    # A bar would go between the lines of a terminal.
    show = file != "-" or not sys.stdout.isatty()
    with connection_from(config, servers) as spec, output(file) as write:
        exported = asyncio.run(export(spec, app, selection, write, show=show))
    _say(f"{_letters(exported)} exported")


def _selection(actor: str, reason: str, older_than: str | None, newer_than: str | None) -> Selection:
    from understudy.runtime.jetstream.stored_letters import Selection

    if actor:
        check_name(actor, "--actor")
    if reason and reason not in REASONS:
        raise ConfigurationError(f"--reason is {reason!r}; give {', '.join(REASONS[:-1])} or {REASONS[-1]}")
    return Selection(
        actor=actor,
        reason=reason,
        since=ago("--newer-than", newer_than),
        before=ago("--older-than", older_than),
    )


def _chosen(ids: list[int] | None, selection: Selection, *, everything: bool) -> Chosen:
    from understudy.runtime.cli.letter_actions import Chosen

    if [bool(ids), not selection.is_everything, everything].count(True) != 1:
        raise ConfigurationError(
            "say which: either IDs, or filters (--actor, --reason, --older-than, --newer-than), or --all"
        )
    return Chosen(ids or [], selection)


def _check_rate(rate: float | None) -> None:
    if rate is not None and not 0 < rate < float("inf"):
        raise ConfigurationError(f"--rate is {rate:g}; give a number above 0")


def _letters(count: int) -> str:
    return f"{count:,} dead letter{'' if count == 1 else 's'}"


def _say(text: str) -> None:
    typer.echo(text, err=True)
