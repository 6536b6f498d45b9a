"""What `understudy drain` does: tell the nodes, and watch them until they have gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import typer

from understudy.actors.errors import BrokerError, ConfigurationError
from understudy.runtime.admin.nodes import Drained, DrainReply, Node
from understudy.runtime.cli.nodes import SILENT, AnyNode, Nodes, connected, describe, find, listed, read_node
from understudy.runtime.jetstream.services import Absent, Refused, Unanswered, ask, ask_for_more

if TYPE_CHECKING:
    from understudy.config.settings import Settings
    from understudy.runtime.jetstream.connection import Connection

DRAINED = 0
NOT_DRAINED = 75
# What a node may take beyond its drain to end the rest of itself and say so.
MARGIN_SECONDS = 10.0
POLL_SECONDS = 0.25
# How long a last word may be on its way when its node has gone already.
LAST_WORD_SECONDS = 0.5


async def drain_nodes(
    settings: Settings,
    app: str | None,
    node: str | None,
    *,
    all_nodes: bool,
    timeout_seconds: float | None,
    as_json: bool = False,
) -> int:
    """Drain them, side by side, print what became of each, and return the exit status.

    Args:
        settings: where the broker is.
        app: whose nodes; None if there is but one.
        node: which node; None if there is but one, or all are meant.
        all_nodes: whether all are meant where there are several.
        timeout_seconds: how long to wait; None for what each may take.
        as_json: print one JSON object instead of a line for each.

    Raises:
        ConfigurationError: it isn't clear which is meant.
        NotThereError: no node is called so.
        BrokerError: no node answers.
    """
    async with connected(settings) as client:
        nodes = _meant(await find(client, settings, app), node, all_nodes=all_nodes)
        outcomes = await asyncio.gather(*(_drain(client, one, timeout_seconds) for one in nodes.answering))
    problems: list[tuple[AnyNode, str]] = [
        *zip(nodes.answering, outcomes, strict=True),
        *((silent, SILENT) for silent in nodes.silent),
    ]
    if as_json:
        drained = [
            {"run_id": one.run_id, "node": describe(one), "drained": not problem, "problem": problem}
            for one, problem in problems
        ]
        typer.echo(msgspec.json.encode({"nodes": drained}))
    else:
        for one, problem in problems:
            typer.echo(f"{describe(one)}: {problem or 'drained'}")
    return NOT_DRAINED if any(problem for _, problem in problems) else DRAINED


def _meant(found: Nodes, node: str | None, *, all_nodes: bool) -> Nodes:
    nodes = found.of_one_app().named(node)
    if len(nodes.all) > 1 and not all_nodes:
        which = f"{len(nodes.all)} nodes are called {node!r}" if node else f"{len(nodes.all)} nodes run"
        raise ConfigurationError(f"{which}; choose by --node, or take --all:\n{listed(nodes.all)}")
    return nodes


async def _drain(client: Connection, node: Node, timeout_seconds: float | None) -> str:
    """Drain a node, and return what is wrong when it has gone; empty if nothing is."""
    try:
        async with ask_for_more(client, node.subject("drain")) as answers:
            begun = msgspec.json.decode(await answers.get(), type=DrainReply)
            timeout = begun.timeout_seconds + MARGIN_SECONDS if timeout_seconds is None else timeout_seconds
            # More than is set, which nobody would understand who knows that.
            typer.echo(
                f"{describe(node)}: draining, for up to {begun.timeout_seconds:g} s "
                "(its shutdown_timeout_seconds, and a little to kill what is left)",
                err=True,
            )
            showing = asyncio.create_task(_show_progress(client, node))
            try:
                async with asyncio.timeout(timeout):
                    return await _last_word(client, node, answers, showing)
            except TimeoutError:
                return f"has not ended within {timeout:g} s"
            finally:
                showing.cancel()
    except Absent:
        return "ended before it was told to"
    except Unanswered:
        return "doesn't answer"
    except Refused as refused:
        return str(refused)


async def _last_word(
    client: Connection, node: Node, answers: asyncio.Queue[bytes], showing: asyncio.Task[None]
) -> str:
    """Wait until the node has gone, and return what is wrong."""
    word = asyncio.create_task(answers.get())
    # Progress ends with the node.
    await asyncio.wait([word, showing], return_when=asyncio.FIRST_COMPLETED)
    try:
        async with asyncio.timeout(LAST_WORD_SECONDS if showing.done() else None):
            drained = msgspec.json.decode(await word, type=Drained)
    except TimeoutError:
        return "ended without saying how: killed, or the broker went first"
    # Its connection is the last to go. Where the broker is its own, that goes too.
    while client.is_connected:
        try:
            await ask(client, node.subject("tree"))
        except (Absent, BrokerError):
            break
        except Unanswered:
            continue
        await asyncio.sleep(POLL_SECONDS)
    if drained.left:
        return f"not everything was drained: {', '.join(drained.left)}"
    return "" if drained.exit_status == 0 else f"ended with status {drained.exit_status}"


async def _show_progress(client: Connection, node: Node) -> None:
    """Say how many cells are left whenever that changes; return when the node has gone."""
    said = -1
    while True:
        try:
            _, root = await read_node(client, node)
        except Absent:
            return
        except (Unanswered, BrokerError):
            await asyncio.sleep(POLL_SECONDS)
            continue
        cells = list(root.cells())
        left = sum(cell.supervision.pid is not None for cell in cells)
        if left != said:
            typer.echo(f"{describe(node)}: {len(cells) - left} of {len(cells)} cells have stopped", err=True)
            said = left
        await asyncio.sleep(POLL_SECONDS)
