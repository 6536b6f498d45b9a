"""`understudy check`: validate an app, and compare what it declares with what the server has."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from understudy.runtime.cli.options import ConfigFile, Servers, Target, remedies, settings_from
from understudy.runtime.specs import SupervisorSpec

if TYPE_CHECKING:
    from understudy.config.connection import ConnectionSpec
    from understudy.runtime.jetstream.topology import Change
    from understudy.runtime.specs import AppSpec


def check(
    target: Target,
    config: ConfigFile = None,
    servers: Servers = None,
    apply: Annotated[bool, typer.Option("--apply", help="Create and change what differs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Validate an app and show its tree, streams and consumers, and what would be created or changed.

    Example: understudy check flights:app

    Changes nothing without --apply. Exits 1 if the server differs from what is declared.
    """
    from understudy.runtime.target import inspect_target

    settings = settings_from(config, {"nats.servers": servers}, quiet=True)
    app = inspect_target(target)
    if not as_json:
        typer.echo("\n".join(_describe(app)))
    with remedies(settings):
        changes = asyncio.run(_compare(settings.connection(), app, apply=apply))
    if as_json:
        typer.echo(json.dumps(_plain(app, changes, applied=apply)))
    else:
        typer.echo("\n".join(_report(changes, applied=apply)))
    return 1 if changes and not apply else 0


async def _compare(connection: ConnectionSpec, app: AppSpec, *, apply: bool) -> list[Change]:
    from understudy.runtime.jetstream.connection import close, connect
    from understudy.runtime.jetstream.topology import ensure_topology

    client = await connect(connection, name=f"understudy-check-{app.name}")
    try:
        return await ensure_topology(client, app, apply=apply, force=True)
    finally:
        await close(client)


def _describe(app: AppSpec) -> list[str]:
    lines = [f"app {app.name}", *_branch(app.root, indent=1), "streams"]
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


def _report(changes: list[Change], *, applied: bool) -> list[str]:
    found = ["The server has all of it."]
    if changes:
        found = ["done:", *(f"  {change.done}" for change in changes)]
        if not applied:
            found = ["differs:", *(f"  {change}" for change in changes)]
    # A client can't ask for it.
    return [*found, "Not seen from here: whether the server syncs a write to disk before it confirms it"]


def _plain(app: AppSpec, changes: list[Change], *, applied: bool) -> dict[str, Any]:
    return {
        "app": msgspec.to_builtins(app),
        "changes": msgspec.to_builtins(changes),
        "applied": applied,
    }
