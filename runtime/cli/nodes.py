"""Finding the nodes that a command is about."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from understudy.actors.errors import BrokerError, ConfigurationError, UnderstudyError
from understudy.config.connection import redact_url
from understudy.runtime.admin.nodes import Node, SilentNode, TreeReply, find_nodes
from understudy.runtime.jetstream import connection, services
from understudy.runtime.supervision.tree import Supervisor

if TYPE_CHECKING:
    from understudy.config.settings import Settings

AnyNode: TypeAlias = Node | SilentNode
# What is said of a node that is seen by its connection only.
SILENT = "connected, but doesn't answer"


class NobodyAnswersError(BrokerError):
    """No node answers that the command could be about."""


class NotThereError(UnderstudyError):
    """Who was asked has answered that there is nothing of that name."""


class Nodes(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes that a command is about.

    Args:
        answering: those that answer, by app and name.
        silent: those that are connected to the broker and don't answer.
    """

    answering: tuple[Node, ...]
    silent: tuple[SilentNode, ...]

    @property
    def all(self) -> tuple[AnyNode, ...]:
        """Return all of them."""
        return (*self.answering, *self.silent)

    def of_one_app(self) -> Nodes:
        """Return the same nodes.

        Raises:
            ConfigurationError: they are of several apps.
        """
        apps = sorted({node.app for node in self.all})
        if len(apps) > 1:
            raise ConfigurationError(f"several apps run here: {', '.join(apps)}; name one with --app")
        return self

    def named(self, name: str | None) -> Nodes:
        """Return those that `--node` names, all if it isn't given.

        Raises:
            NotThereError: it names none.
        """
        if name is None:
            return self
        chosen = Nodes(
            answering=tuple(node for node in self.answering if _is_called(node, name)),
            silent=tuple(node for node in self.silent if _is_called(node, name)),
        )
        if not chosen.all:
            raise NotThereError(f"no node is called {name!r}; there are:\n{listed(self.all)}")
        return chosen


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[connection.Connection]:
    """Connect for the length of a command.

    Args:
        settings: where to.

    Raises:
        BrokerError: there is no broker to work with.
    """
    # The fast lane is for many messages; its self-check would want permissions that a few questions don't.
    spec = msgspec.structs.replace(settings.connection(), fast_lane=False)
    client = await connection.connect(spec, name="understudy")
    try:
        yield client
    finally:
        await connection.close(client)


async def find(client: connection.Connection, settings: Settings, app: str | None) -> Nodes:
    """Find the nodes of an app, or of all apps.

    Args:
        client: a connection.
        settings: whose servers an error names.
        app: its name, None for all.

    Raises:
        NobodyAnswersError: there are none.
    """
    answering, silent = await find_nodes(client, app)
    if not answering:
        servers = ", ".join(map(redact_url, settings.nats.servers))
        what = "of any app" if app is None else f"of the app {app!r}"
        found = f"; connected, but silent:\n{listed(silent)}" if silent else ""
        raise NobodyAnswersError(f"no node {what} answers at {servers}{found}")
    return Nodes(answering=tuple(answering), silent=tuple(silent))


async def read_node(client: connection.Connection, node: Node) -> tuple[TreeReply, Supervisor]:
    """Return a node as it is now, and its tree.

    Raises:
        Absent: it is gone.
        Unanswered: it doesn't answer.
        BrokerError: its answer can't be read, or the connection is gone.
    """
    body = await services.ask(client, node.subject("tree"))
    try:
        reply = msgspec.json.decode(body, type=TreeReply)
        return reply, msgspec.convert(reply.tree, Supervisor)
    except msgspec.DecodeError as error:
        raise BrokerError(
            f"{node.name} runs understudy {node.version}, whose answer can't be read: {error}"
        ) from error


def listed(nodes: Sequence[AnyNode]) -> str:
    """Return nodes as lines of a message."""
    return "\n".join(f"  {node.run_id}  {describe(node)}" for node in nodes)


def describe(node: AnyNode) -> str:
    """Return what a node is called, for people."""
    if isinstance(node, Node):
        return f"{node.app} on {node.name}"
    return f"{node.app} on {node.name} ({node.address})"


def _is_called(node: AnyNode, name: str) -> bool:
    return name in (node.run_id, node.name, node.host)
