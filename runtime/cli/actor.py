"""`understudy actor`: pause, resume or restart an actor's cells on every node."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from understudy.runtime.cli.command import Command
from understudy.runtime.cli.options import (
    AppName,
    ConfigFile,
    NodeName,
    Servers,
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
    help="Pause, resume or restart an actor's cells.",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def pause(
    name: ActorName,
    app: AppName = None,
    node: NodeName = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Have an actor begin nothing more, on every node, until it is resumed or its node started anew.

    Example: understudy actor pause notifier

    What runs finishes, what is held stays held, and nothing more is asked for. The node stays ready. A paused
    cell that is restarted, for whatever reason, is paused again. Exits 75 if it isn't so in time.
    """
    return _act("pause", name, app, node, timeout, config, servers)


def resume(
    name: ActorName,
    app: AppName = None,
    node: NodeName = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Have a paused actor go on.

    Example: understudy actor resume notifier

    Exits 75 if it isn't so in time.
    """
    return _act("resume", name, app, node, timeout, config, servers)


def restart(
    name: ActorName,
    app: AppName = None,
    node: NodeName = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Have an actor's cells drain and start again.

    Example: understudy actor restart notifier/1

    That is no failure: it uses up none of its supervisor's restarts, and its siblings go on. Exits 75 if it
    isn't so in time.
    """
    return _act("restart", name, app, node, timeout, config, servers)


# The first sentence of the docstring is too long for 80 columns.
actor.command(cls=Command, short_help="Have an actor begin nothing more, until it is resumed.")(pause)
actor.command(cls=Command)(resume)
actor.command(cls=Command)(restart)


def _act(
    action: Action,
    name: str,
    app: str | None,
    node: str | None,
    timeout_seconds: float,
    config: ConfigFile,
    servers: Servers,
) -> int:
    # Loaded when the command runs: --help needs none of it.
    from understudy.runtime.cli.actor_action import act

    settings = settings_from(config, {"nats.servers": servers}, quiet=True)
    with remedies(settings):
        return asyncio.run(act(settings, action, name, app, node, timeout_seconds))
