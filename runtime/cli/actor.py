"""`understudy actor`: pause, resume or restart an actor's cells on every node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from understudy.runtime.cli.command import Command
from understudy.runtime.cli.options import (
    AppName,
    ConfigFile,
    Json,
    NodeName,
    Servers,
    check_timeout,
    remedies,
    settings_from,
)

if TYPE_CHECKING:
    from understudy.runtime.admin.nodes import Action

ActorName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="An actor, or one cell of it, like notifier/1.", show_default=False),
]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait until it is so.")
]
# What runs may take as long as a handler's timeout, which is 30 s by default.
TIMEOUT_SECONDS = 60.0

actor = typer.Typer(
    help="Pause, resume or restart an actor's cells.\n\nExample: understudy actor pause notifier",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _command(action: Action, text: str) -> Callable[..., int]:
    """Return what a command does, with the options that all of them take."""

    def command(
        name: ActorName,
        as_json: Json = False,
        app: AppName = None,
        node: NodeName = None,
        timeout: Timeout = TIMEOUT_SECONDS,
        config: ConfigFile = None,
        servers: Servers = None,
    ) -> int:
        check_timeout(timeout)
        # Loaded when the command runs: --help needs none of it.
        from understudy.runtime.cli.actor_action import act

        settings = settings_from(config, {"nats.servers": servers}, quiet=True)
        with remedies(settings):
            return asyncio.run(act(settings, action, name, app, node, timeout, as_json=as_json))

    command.__doc__ = text
    return command


# The first sentence of its text is too long for 80 columns.
actor.command("pause", cls=Command, short_help="Have an actor begin nothing more, until it is resumed.")(
    _command(
        "pause",
        """Have an actor begin nothing more, on every node, until it is resumed or its node started anew.

        Example: understudy actor pause notifier

        What runs finishes, what is held stays held, and nothing more is asked for. The node stays ready. A
        paused cell that is restarted, for whatever reason, is paused again. Exits 75 if it isn't so in time,
        1 if no node has such an actor or cell.
        """,
    )
)
actor.command("resume", cls=Command)(
    _command(
        "resume",
        """Have a paused actor go on.

        Example: understudy actor resume notifier

        Exits 75 if it isn't so in time, 1 if no node has such an actor or cell.
        """,
    )
)
actor.command("restart", cls=Command)(
    _command(
        "restart",
        """Have an actor's cells drain and start again.

        Example: understudy actor restart notifier/1

        That is no failure: it uses up none of its supervisor's restarts, and its siblings go on. Exits 75 if
        it isn't so in time, 1 if no node has such an actor or cell.
        """,
    )
)
