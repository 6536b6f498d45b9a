"""`understudy sagas`: look at sagas, and decide on those that are stuck."""

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
from understudy.runtime.cli.words import plural

if TYPE_CHECKING:
    from understudy.runtime.cli.saga_actions import Choice

DEFAULT_LIMIT = 50
STATES = ("running", "compensating", "stuck", "completed", "compensated", "abandoned")

sagas = command_group(
    "sagas",
    "List and show sagas; resume or abandon those that are stuck.\n\n"
    "Example: understudy sagas list --state stuck",
)

App = Annotated[
    str | None, typer.Option("--app", metavar="NAME", help="Only this app's.", show_default=False)
]
SagaName = Annotated[
    str, typer.Option("--saga", metavar="NAME", help="Only those of this name.", show_default=False)
]
Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Which; 'list' shows the ids.", show_default=False),
]
Everything = Annotated[bool, typer.Option("--all", help="All that are stuck.")]


@sagas.command("list", cls=Command)
def list_sagas(
    saga: SagaName = "",
    state: Annotated[
        str,
        typer.Option("--state", metavar="STATE", help=f"Only {', '.join(STATES)} ones.", show_default=False),
    ] = "",
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Only what has not moved for 30s, 15m, 2h.",
            show_default=False,
        ),
    ] = None,
    newer_than: Annotated[
        str | None,
        typer.Option("--newer-than", metavar="AGE", help="Only what has moved since.", show_default=False),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="At most so many, the last to move.")
    ] = DEFAULT_LIMIT,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    app: App = None,
    config: ConfigFile = None,
    servers: Servers = None,
) -> None:
    """List sagas, the one that moved last first.

    Example: understudy sagas list --state stuck --older-than 1h

    Reads all that there are, those that have ended too; stderr tells how many more there are.
    """
    from understudy.runtime.cli.letter_views import COLUMNS
    from understudy.runtime.cli.saga_actions import find, given, names, summary, table

    choice = _choice(app, saga, state, older_than, newer_than)
    with connection_from(config, servers) as spec:
        there = asyncio.run(find(spec, choice))
        known = asyncio.run(names(spec)) if (app or saga) and not there.sagas else []
    found, shown = there.sagas, there.sagas[:limit]
    if as_json:
        for one in shown:
            typer.echo(msgspec.json.encode(summary(one)))
    elif shown:
        columns = shutil.get_terminal_size((COLUMNS, 0)).columns if sys.stdout.isatty() else COLUMNS
        typer.echo(table(shown, columns=columns))
    for problem in there.unread:
        _say(problem)
    if not found:
        options = {
            "--app": app, "--saga": saga, "--state": state,
            "--older-than": older_than, "--newer-than": newer_than,
        }  # fmt: skip
        chosen = given(options)
        hint = f"; there are {', '.join(known)}" if known else ""
        _say(f"no sagas with {chosen}{hint}" if chosen else "no sagas")
    elif len(found) > len(shown):
        _say(f"{len(found) - len(shown):,} more, all older; --limit {len(found)} shows them")


@sagas.command("show", cls=Command, short_help="Show all of one saga.")
def show_saga(
    number: Annotated[
        str, typer.Argument(metavar="ID", help="Which; 'list' shows the ids.", show_default=False)
    ],
    saga: SagaName = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    app: App = None,
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Show all of one saga: where it is, why, what is left to undo, and its data.

    Example: understudy sagas show B-1742

    Exits 1 if there is no such saga.
    """
    from understudy.runtime.cli.saga_actions import describe, find_one, missing, whole

    choice = _choice(app, saga)
    with connection_from(config, servers) as spec:
        found = asyncio.run(find_one(spec, choice, number))
    if found is None:
        _say(f"{missing(choice, number)}; 'understudy sagas list' shows which there are")
        return 1
    typer.echo(msgspec.json.encode(whole(found)) if as_json else describe(found))
    return 0


@sagas.command("resume", cls=Command, short_help="Have stuck sagas tried again.")
def resume_sagas(
    ids: Ids = None,
    everything: Everything = False,
    saga: SagaName = "",
    app: App = None,
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Have stuck sagas tried again, each where it was.

    Example: understudy sagas resume --all --saga rebooking

    It is their app that does it, now or when it runs again. One that isn't stuck goes on by itself; resuming
    it does no harm, and helps where the event that drives it became a dead letter. Exits 1 if one of the IDs
    isn't there or has ended.
    """
    choice = _stuck(ids, app, saga, everything=everything)
    return _tell(choice, ids, "resume", "", config, servers)


@sagas.command("abandon", cls=Command, short_help="Leave sagas as they are, for good.")
def abandon_sagas(
    ids: Ids = None,
    everything: Everything = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept.", show_default=False)
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    saga: SagaName = "",
    app: App = None,
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Leave sagas as they are, for good: nothing more is done or undone.

    Example: understudy sagas abandon B-1742 --reason "refunded by hand"

    Asks first; a script has to say --yes. Exits 1 if one of the IDs isn't there or has ended.
    """
    choice = _stuck(ids, app, saga, everything=everything)
    if not yes and not sys.stdin.isatty():
        raise ConfigurationError("there is nobody to ask whether to abandon them; give --yes")
    return _tell(choice, ids, "abandon", reason, config, servers, ask_first=not yes)


def _tell(
    choice: Choice,
    ids: list[str] | None,
    kind: str,
    reason: str,
    config: ConfigFile,
    servers: Servers,
    *,
    ask_first: bool = False,
) -> int:
    from understudy.runtime.cli.saga_actions import find_active, tell_all

    with connection_from(config, servers) as spec:
        meant, problems = asyncio.run(find_active(spec, choice, ids or []))
        for problem in problems:
            _say(problem)
        status, count = 1 if problems else 0, plural(len(meant), "saga")
        if meant and ask_first:
            theirs = "What it has done" if len(meant) == 1 else "What they have done"
            if not agreed(f"Abandon {count}? {theirs} is not undone."):
                _say("nothing abandoned")
                return status
        asyncio.run(tell_all(spec, meant, kind, reason))
    _say(f"{count} told to {kind}")
    return status


def _choice(
    app: str | None, saga: str, state: str = "", older_than: str | None = None, newer_than: str | None = None
) -> Choice:
    from understudy.runtime.cli.saga_actions import Choice

    for option, name in (("--app", app), ("--saga", saga)):
        if name:
            check_name(name, option)
    if state and state not in STATES:
        raise ConfigurationError(f"--state is {state!r}; give {', '.join(STATES[:-1])} or {STATES[-1]}")
    return Choice(
        app=app,
        saga=saga,
        phase=state,
        since=ago("--newer-than", newer_than),
        before=ago("--older-than", older_than),
    )


def _stuck(ids: list[str] | None, app: str | None, saga: str, *, everything: bool) -> Choice:
    if bool(ids) == everything:
        raise ConfigurationError("say which: either IDs, or --all for all that are stuck")
    return _choice(app, saga, "" if ids else "stuck")


def _say(text: str) -> None:
    typer.echo(text, err=True)
