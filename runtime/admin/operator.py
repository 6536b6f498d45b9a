"""The operator's hand on this node: its tree, pausing and restarting of actors, and the drain, over NATS."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from understudy.actors.errors import BrokerError
from understudy.actors.names import nearest
from understudy.runtime.admin.nodes import (
    SERVICE,
    ActorReply,
    ActorRequest,
    Drained,
    DrainReply,
    Node,
    TreeReply,
)
from understudy.runtime.cell.paused import read_paused, write_paused
from understudy.runtime.cell.status import boottime
from understudy.runtime.jetstream import services
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.services import Question, Refused

_log = structlog.get_logger(__name__)


class Operated(Protocol):
    """What the operator acts on; each call is made in the launcher's event loop and must not block."""

    def tree(self) -> object:
        """Return the tree as something that msgspec can write as JSON."""

    def not_ready(self) -> dict[str, str]:
        """Return the parts that aren't at work, each with why."""

    def generations(self) -> Mapping[str, int]:
        """Return every cell's name with its generation, 0 for one that was never started."""

    async def pause_changed(self) -> None:
        """Have every cell look anew whether it is paused.

        Raises:
            UnderstudyError: the tree can't be reached.
        """

    async def restart(self, cells: tuple[str, ...]) -> None:
        """Have these cells drain and start again.

        Raises:
            UnderstudyError: the tree can't be reached.
        """

    def begin_drain(self) -> float:
        """Begin to drain and end, unless that has begun; return how long it may take, in seconds."""

    @property
    def is_draining(self) -> bool:
        """Whether the drain has begun."""


class Operator:
    """Answers the operator's commands.

    Args:
        operated: what they are about.
        node: this node.
        run_directory: where it is kept which cells are paused.
    """

    def __init__(self, operated: Operated, node: Node, run_directory: Path) -> None:
        self._operated = operated
        self._node = node
        self._directory = run_directory
        self._drain_questions: list[Question] = []
        # One after the other: each changes the set of paused cells, or sends a message down the tree.
        self._acting = asyncio.Lock()

    async def serve(self, client: Connection) -> None:
        """Answer until the connection is closed.

        Args:
            client: the launcher's connection.
        """
        await services.serve(
            client,
            name=SERVICE,
            version=self._node.version,
            description=f"a node of the app {self._node.app}",
            metadata=self._node.metadata(),
            group=self._node.group,
            endpoints={"tree": self._tree, "actor": self._actor, "drain": self._drain},
            data=self._summary,
        )

    async def say_last(self, exit_status: int, left: Iterable[str]) -> None:
        """Tell whoever had this node drained how it ended.

        Args:
            exit_status: what the launcher ends with.
            left: what wasn't drained.
        """
        for question in self._drain_questions:
            with contextlib.suppress(BrokerError):
                await question.answer(msgspec.json.encode(Drained(exit_status=exit_status, left=tuple(left))))

    def _summary(self, endpoint: str) -> dict[str, object]:
        """Return the node in short, which its statistics say where the whole tree can be asked for."""
        if endpoint != "tree":
            return {}
        operated = self._operated
        not_ready, cells = operated.not_ready(), operated.generations()
        return {
            "ready": not not_ready,
            "not_ready": not_ready,
            "draining": operated.is_draining,
            "cells": len(cells),
            "paused": sorted(read_paused(self._directory).intersection(cells)),
        }

    async def _tree(self, _: Question) -> bytes:
        operated = self._operated
        return msgspec.json.encode(
            TreeReply(node=self._node, clock=boottime(), not_ready=operated.not_ready(), tree=operated.tree())
        )

    async def _actor(self, question: Question) -> bytes:
        try:
            request = msgspec.json.decode(question.body, type=ActorRequest)
        except msgspec.DecodeError as error:
            raise Refused(
                "400", f'wanted {{"action": "pause|resume|restart", "name": …}}: {error}'
            ) from error
        async with self._acting:
            if self._operated.is_draining:
                raise Refused("409", "this node is draining")
            generations = self._operated.generations()
            cells = _cells_named(request.name, generations)
            _log.info("operator", action=request.action, cells=cells)
            if request.action == "restart":
                await self._operated.restart(tuple(cells))
            else:
                paused = read_paused(self._directory)
                paused = paused.union(cells) if request.action == "pause" else paused.difference(cells)
                write_paused(self._directory, paused)
                await self._operated.pause_changed()
        return msgspec.json.encode(ActorReply(generations={cell: generations[cell] for cell in cells}))

    async def _drain(self, question: Question) -> bytes:
        self._drain_questions.append(question)
        _log.info("operator", action="drain")
        return msgspec.json.encode(DrainReply(timeout_seconds=self._operated.begin_drain()))


def _cells_named(name: str, cells: Iterable[str]) -> list[str]:
    known = list(cells)
    actors = list(dict.fromkeys(cell.partition("/")[0] for cell in known))
    found = [cell for cell in known if name in (cell, cell.partition("/")[0])]
    if not found:
        # An actor with one cell is best called by its own name.
        names = [*actors, *known]
        raise Refused("404", f"no actor or cell is called {name!r}{nearest(name, names)}")
    return found


def semantic(version: str) -> str:
    """Return a version as ADR-32 wants it: "0.2.0-rc1" where Python's packages say "0.2.0rc1".

    Args:
        version: as Python's packages write it.
    """
    match = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(.*)", version)
    assert match is not None
    *release, rest = match.groups()
    suffix = re.sub(r"[^0-9A-Za-z]+", ".", rest).strip(".")
    return ".".join(number or "0" for number in release) + (f"-{suffix}" if suffix else "")
