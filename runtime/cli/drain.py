"""`understudy drain`: end nodes from outside, as SIGTERM does on their machines."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from understudy.actors.errors import ConfigurationError
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


def drain(
    app: AppName = None,
    node: NodeName = None,
    all_nodes: Annotated[bool, typer.Option("--all", help="All of the app's nodes.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            help="How long to wait; by default what each node may take, and 10 more.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Have a node drain and end, as SIGTERM does, and wait until it has.

    Example: understudy drain --node web-1:4711

    What is being handled finishes, what is held goes back to the stream. Where several nodes run, --node or
    --all says which. Exits 75 if not everything was drained, 1 if no node is called so, 3 if nobody answers.
    """
    if node is not None and all_nodes:
        raise ConfigurationError("give either --node ID or --all")
    check_timeout(timeout)
    # Loaded when the command runs: --help needs none of it.
    from understudy.runtime.cli.draining import drain_nodes

    # A drained node's own server ends with it: that the connection is lost then is nothing to warn of, and
    # where it is lost before, the result says so.
    settings = settings_from(config, {"nats.servers": servers}, quiet=True, quiet_level="error")
    with remedies(settings):
        return asyncio.run(
            drain_nodes(settings, app, node, all_nodes=all_nodes, timeout_seconds=timeout, as_json=as_json)
        )
