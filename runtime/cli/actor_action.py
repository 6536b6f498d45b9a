"""What `understudy actor` does: tell every node, and watch its tree until it is so."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import typer

from understudy.runtime.admin.nodes import Action, ActorReply, ActorRequest, Node
from understudy.runtime.cli.nodes import SILENT, AnyNode, NotThereError, connected, describe, find, read_node
from understudy.runtime.jetstream.services import Absent, Refused, Unanswered, ask

if TYPE_CHECKING:
    from understudy.config.settings import Settings
    from understudy.runtime.jetstream.connection import Connection
    from understudy.runtime.supervision.tree import Cell

DONE = 0
NOT_DONE = 75
POLL_SECONDS = 0.2


class Judged(msgspec.Struct, frozen=True):
    """What became of a cell, or of all that is meant of a node.

    Args:
        done: whether it is as it was to be.
        text: how it is.
        cell: which; empty where the node says nothing of single ones.
    """

    done: bool
    text: str
    cell: str = ""


async def act(
    settings: Settings,
    action: Action,
    name: str,
    app: str | None,
    node: str | None,
    timeout_seconds: float,
    *,
    as_json: bool = False,
) -> int:
    """Do it on every node, print what became of it, and return the exit status.

    Args:
        settings: where the broker is.
        action: what.
        name: an actor's or a cell's.
        app: whose nodes; None if there is but one.
        node: which node; None for all.
        timeout_seconds: how long to wait until it is so.
        as_json: print one JSON object instead of a line for each cell.

    Raises:
        ConfigurationError: the nodes are of several apps.
        NotThereError: no node has such an actor or cell, or none is called so.
        BrokerError: no node answers.
    """
    async with connected(settings) as client:
        nodes = (await find(client, settings, app)).of_one_app().named(node)
        body = msgspec.json.encode(ActorRequest(action=action, name=name))
        answers = await asyncio.gather(*(_tell(client, one, body) for one in nodes.answering))
        if answers and all(isinstance(answer, Refused) and answer.code == "404" for answer in answers):
            raise NotThereError(str(answers[0]))
        results = await asyncio.gather(
            *(
                _watch(client, one, action, answer, timeout_seconds)
                for one, answer in zip(nodes.answering, answers, strict=True)
            )
        )
    judged: list[tuple[AnyNode, list[Judged]]] = [
        *zip(nodes.answering, results, strict=True),
        *((silent, [Judged(False, SILENT)]) for silent in nodes.silent),
    ]
    if as_json:
        replies = [
            {"run_id": one.run_id, "node": describe(one), "done": _done(cells), "cells": cells}
            for one, cells in judged
        ]
        typer.echo(msgspec.json.encode({"nodes": replies}))
    else:
        for one, cells in judged:
            for cell in cells:
                typer.echo(f"{describe(one)}: {f'{cell.cell} {cell.text}'.lstrip()}")
    return DONE if all(_done(cells) for _, cells in judged) else NOT_DONE


def _done(judged: list[Judged]) -> bool:
    return all(one.done for one in judged)


async def _tell(client: Connection, node: Node, body: bytes) -> ActorReply | Refused | Absent | Unanswered:
    try:
        return msgspec.json.decode(await ask(client, node.subject("actor"), body), type=ActorReply)
    except (Refused, Absent, Unanswered) as failure:
        return failure


async def _watch(
    client: Connection,
    node: Node,
    action: Action,
    told: ActorReply | Refused | Absent | Unanswered,
    timeout_seconds: float,
) -> list[Judged]:
    """Return what became of each of a node's cells when it is so, or as it is when time is up."""
    if isinstance(told, Refused):
        # Another revision of the app may not have it.
        return [Judged(told.code == "404", str(told))]
    if isinstance(told, Absent):
        return [Judged(True, "has ended meanwhile")]
    if isinstance(told, Unanswered):
        return [Judged(False, "doesn't answer")]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    while True:
        try:
            _, root = await read_node(client, node)
        except Absent:
            return [Judged(True, "has ended meanwhile")]
        except Unanswered:
            judged = [Judged(False, "doesn't answer")]
        else:
            judged = _judge(action, told.generations, {cell.name: cell for cell in root.cells()})
        if _done(judged) or loop.time() >= deadline:
            return judged
        await asyncio.sleep(POLL_SECONDS)


def _judge(action: Action, generations: Mapping[str, int], cells: Mapping[str, Cell]) -> list[Judged]:
    return [
        Judged(*judge_cell(action, generation, cells.get(name)), cell=name)
        for name, generation in generations.items()
    ]


def judge_cell(action: Action, generation: int, cell: Cell | None) -> tuple[bool, str]:
    """Return whether a cell is as it was to be, and how it is.

    Args:
        action: what was asked of it.
        generation: which it ran in then.
        cell: how it is now; None if it isn't there.
    """
    if cell is None:
        return False, "has not been started yet"
    by_parent, own = cell.supervision, cell.status
    not_up = f"is not up: {cell.problem}" if cell.problem else "is up"
    pause = own.pause if own is not None else "none"
    if action == "restart":
        if by_parent.generation <= generation:
            return False, f"still runs in generation {by_parent.generation}"
        # A pause outlives the restart, which is easily forgotten.
        how = not_up if cell.problem or pause == "none" else f"is {pause}"
        return by_parent.state in ("up", "stopped"), f"{how}, in generation {by_parent.generation}"
    if by_parent.pid is None:
        # It begins as the operator wants it.
        return True, not_up
    if action == "pause":
        held = f", {own.held} held" if own is not None and own.held else ""
        return pause == "paused", {"paused": f"is paused{held}", "pausing": f"is still pausing{held}"}.get(
            pause, "is not paused yet"
        )
    return pause == "none", not_up if pause == "none" else "is still paused"
