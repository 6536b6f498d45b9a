"""`understudy tree`: every node's supervisors and cells, as they are now."""

from __future__ import annotations

import asyncio
import shutil
import sys
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from understudy.actors.errors import UnderstudyError
from understudy.runtime.cli.options import ConfigFile, Servers, remedies, settings_from

if TYPE_CHECKING:
    from understudy.config.settings import Settings

# The status of a command that finds a node which doesn't answer.
SILENT = 1


def tree(
    app: Annotated[
        str | None,
        typer.Option("--app", metavar="NAME", help="Only this app's nodes.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config: ConfigFile = None,
    servers: Servers = None,
) -> int:
    """Show the supervisors and cells of every node that is connected to the broker.

    Example: understudy tree --app flights

    Exits 1 if a node is connected and doesn't answer, 3 if nobody answers.
    """
    settings = settings_from(config, {"nats.servers": servers}, quiet=True)
    with remedies(settings):
        return asyncio.run(_show(settings, app, as_json=as_json))


async def _show(settings: Settings, app: str | None, *, as_json: bool) -> int:
    from understudy.runtime.cli.nodes import SILENT as NO_ANSWER
    from understudy.runtime.cli.nodes import connected, describe, find, read_node
    from understudy.runtime.cli.tree_view import WIDTH, view
    from understudy.runtime.jetstream.services import Absent

    async with connected(settings) as client:
        nodes = await find(client, settings, app)
        # One node that can't be read is no reason to say nothing about the others.
        answers = await asyncio.gather(
            *(read_node(client, node) for node in nodes.answering), return_exceptions=True
        )
    read: list[Any] = []
    failed: list[tuple[str, str, str]] = [(node.run_id, describe(node), NO_ANSWER) for node in nodes.silent]
    for node, answer in zip(nodes.answering, answers, strict=True):
        if isinstance(answer, Absent):
            # Gone since it was found.
            continue
        if isinstance(answer, UnderstudyError):
            failed.append((node.run_id, describe(node), str(answer)))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            read.append(answer)
    if as_json:
        body = {
            "nodes": [reply for reply, _ in read],
            "silent": [{"run_id": run_id, "node": name, "problem": why} for run_id, name, why in failed],
        }
        typer.echo(msgspec.json.encode(body).decode())
    else:
        columns = shutil.get_terminal_size((WIDTH, 0)).columns if sys.stdout.isatty() else None
        blocks = ["\n".join(view(reply, root, columns=columns)) for reply, root in read]
        blocks += [f"{name}  run {run_id}\n  {why}" for run_id, name, why in failed]
        typer.echo("\n\n".join(blocks))
    return SILENT if failed else 0
