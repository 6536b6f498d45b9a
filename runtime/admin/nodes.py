"""The nodes of an app as NATS services: who they are, and what is said to them and by them.

Each launcher is an instance of the service `understudy`. Its endpoints are `understudy.<app>.<run id>.tree`,
`.actor` and `.drain`; what goes over them is JSON.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from understudy.runtime.jetstream import services
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.services import Instance, Silent

SERVICE = "understudy"
Action = Literal["pause", "resume", "restart"]


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One launcher with all below it.

    Args:
        app: which app it runs.
        run_id: names this run of the launcher.
        host: the name of its machine.
        pid: the launcher's process.
        revision: the app's.
        version: of this package, as semantic versions are written.
    """

    app: str
    run_id: str
    host: str
    pid: int
    revision: int
    version: str

    @property
    def name(self) -> str:
        """What people call it: host and pid."""
        return f"{self.host}:{self.pid}"

    @property
    def group(self) -> str:
        """What its endpoints' subjects begin with."""
        return f"{SERVICE}.{self.app}.{self.run_id}"

    def subject(self, endpoint: str) -> str:
        """Return an endpoint's subject."""
        return f"{self.group}.{endpoint}"

    def metadata(self) -> dict[str, str]:
        """Return what the service says of it, which is text throughout."""
        fields = ("app", "run_id", "host", "pid", "revision")
        return {field: str(getattr(self, field)) for field in fields}


class SilentNode(msgspec.Struct, frozen=True, kw_only=True):
    """A launcher that is connected and doesn't answer.

    Args:
        app, run_id: as of `Node`.
        connection: its connection's name, which tells host and pid.
        address: where it comes from.
    """

    app: str
    run_id: str
    connection: str
    address: str

    @property
    def name(self) -> str:
        """What people call it: host and pid."""
        return self.connection.rpartition(" ")[2]

    @property
    def host(self) -> str:
        """The name of its machine."""
        return self.name.rpartition(":")[0]


class ActorRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Do something with an actor's cells.

    Args:
        action: what.
        name: an actor's, for all of its cells, or a cell's.
    """

    action: Action
    name: str


class ActorReply(msgspec.Struct, frozen=True, kw_only=True):
    """It was passed on; the tree tells when it is so.

    Args:
        generations: the cells that it is about, with the generation of each.
    """

    generations: dict[str, int]


class TreeReply(msgspec.Struct, frozen=True, kw_only=True):
    """A node as it is now.

    Args:
        node: which.
        not_ready: what isn't at work, each with why; empty if the node is ready.
        clock: its CLOCK_BOOTTIME, by which the times in the tree are to be read.
        tree: the root supervisor and all below it, as `/api/tree` has it.
    """

    node: Node
    clock: float
    not_ready: dict[str, str]
    tree: Any


class DrainReply(msgspec.Struct, frozen=True, kw_only=True):
    """The drain has begun; `Drained` follows on the same subject.

    Args:
        timeout_seconds: what it may take.
    """

    timeout_seconds: float


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """The last word of a node that was told to drain.

    Args:
        exit_status: what its process ends with.
        left: what wasn't drained.
    """

    exit_status: int
    left: tuple[str, ...] = ()


async def find_nodes(client: Connection, app: str | None) -> tuple[list[Node], list[SilentNode]]:
    """Find the nodes that run.

    Args:
        client: a connection.
        app: only those of this app; None for all.

    Returns:
        Those that answer and those that don't, in an order that stays.

    Raises:
        BrokerUnreachable: the connection is gone.
    """
    found, silent = await services.find(
        client,
        SERVICE,
        subjects=f"{SERVICE}.{app or '*'}.*.tree",
        subject_of=lambda instance: _node(instance).subject("tree"),
    )
    nodes = [node for node in map(_node, found) if app is None or node.app == app]
    return sorted(nodes, key=_order), sorted(map(_silent_node, silent), key=_order)


def _node(instance: Instance) -> Node:
    fields = instance.metadata | {"version": instance.version}
    return msgspec.convert(fields, Node, strict=False)


def _silent_node(silent: Silent) -> SilentNode:
    _, app, run_id, _ = silent.subject.split(".")
    return SilentNode(app=app, run_id=run_id, connection=silent.connection, address=silent.address)


def _order(node: Node | SilentNode) -> tuple[str, str, str]:
    return node.app, node.name, node.run_id
