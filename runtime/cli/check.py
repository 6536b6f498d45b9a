"""`understudy check`: validate an app, and compare what it declares with what the server has."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from understudy.runtime.cli.options import ConfigFile, Servers, Target, remedies, settings_from

if TYPE_CHECKING:
    from understudy.config.connection import ConnectionSpec
    from understudy.runtime.jetstream.changes import Topology
    from understudy.runtime.specs import AppSpec, SupervisorSpec


def check(
    target: Target,
    config: ConfigFile = None,
    servers: Servers = None,
    apply: Annotated[bool, typer.Option("--apply", help="Create and change what differs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Validate an app and show its tree, streams and consumers, and what would be created or changed.

    Example: understudy check flights:app

    Changes nothing without --apply, which makes and changes all that can be, but for what a newer revision of
    the app has made. Exits 1 if the server differs from what is declared. What is left over from actors that
    are gone is listed, and never deleted.
    """
    from understudy.runtime.target import inspect_target

    settings = settings_from(config, {"nats.servers": servers}, quiet=True)
    app = inspect_target(target)
    if not as_json:
        typer.echo("\n".join(_describe(app)))
    with remedies(settings):
        topology = asyncio.run(_compare(settings.connection(), app, apply=apply))
    if as_json:
        typer.echo(json.dumps(_plain(app, topology, applied=apply)))
    else:
        typer.echo("\n".join(_report(topology, applied=apply)))
    differs = [change for change in topology.changes if change.kind == "kept" or not apply]
    return 1 if differs else 0


async def _compare(connection: ConnectionSpec, app: AppSpec, *, apply: bool) -> Topology:
    from understudy.runtime.jetstream.connection import close, connect
    from understudy.runtime.jetstream.topology import ensure_topology

    client = await connect(connection, name=f"understudy-check-{app.name}")
    try:
        return await ensure_topology(client, app, apply=apply, force=True)
    finally:
        await close(client)


def _describe(app: AppSpec) -> list[str]:
    lines = [f"app {app.name}  revision {app.revision}", *_branch(app.root, indent=1), "streams"]
    for stream in app.streams:
        detail = "used as it is" if stream.existing else ", ".join(stream.subjects)
        lines.append(f"  {stream.name}  {detail}")
    lines.append("consumers")
    lines += [
        f"  {consumer.durable}  {', '.join(consumer.filters)}  on {consumer.stream}"
        for consumer in app.consumers
    ]
    return lines


def _branch(supervisor: SupervisorSpec, indent: int) -> list[str]:
    from understudy.runtime.specs import SupervisorSpec

    margin = "  " * indent
    lines = [
        f"{margin}supervisor {supervisor.name}  {supervisor.strategy}, "
        f"{supervisor.max_restarts} restarts in {supervisor.max_seconds:g} s"
    ]
    for child in supervisor.children:
        if isinstance(child, SupervisorSpec):
            lines += _branch(child, indent + 1)
        else:
            lines.append(f"{margin}  cell {child.name}")
    return lines


def _report(topology: Topology, *, applied: bool) -> list[str]:
    done = [change for change in topology.changes if applied and change.kind != "kept"]
    differs = [change for change in topology.changes if change not in done]
    found = [] if topology.changes else ["The server has all of it."]
    if done:
        found += ["done:", *(f"  {change.done}" for change in done)]
    if differs:
        found += ["differs:", *(f"  {change.advice}" for change in differs)]
    if topology.left_over:
        found += ["left over:", *(f"  {left}" for left in topology.left_over)]
    # A client can't ask for it.
    return [*found, "Not seen from here: whether the server syncs a write to disk before it confirms it"]


def _plain(app: AppSpec, topology: Topology, *, applied: bool) -> dict[str, Any]:
    return {"app": msgspec.to_builtins(app), **msgspec.to_builtins(topology), "applied": applied}
