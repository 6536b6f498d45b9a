"""What an App declares, as plain values: they cross from the process that imported it to all others."""

from __future__ import annotations

import msgspec

from understudy.actors.options import RestartType
from understudy.actors.supervision import Strategy


class StreamSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A stream; what is None is left to the server at creation and not compared afterwards.

    `existing` says that the app only uses it: nothing is created or compared, and `subjects` is empty.
    `timers` says that events may be published to it with a delay.
    """

    name: str
    subjects: tuple[str, ...]
    existing: bool = False
    timers: bool = False
    storage: str | None = None
    retention: str | None = None
    max_age_seconds: float | None = None
    max_bytes: int | None = None
    max_messages: int | None = None
    duplicate_window_seconds: float | None = None
    replicas: int | None = None


class ConsumerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An actor's durable consumer; `capacity` is that of one of its `cells`.

    `sole_owner` says that one cell alone is active, over all nodes; `has_state` and `has_marks` that the app
    needs a bucket for it; `specification` is a hash of all that the user has declared of the actor.
    """

    durable: str
    stream: str
    filters: tuple[str, ...]
    ack_wait_seconds: float
    start: str
    capacity: int
    cells: int
    actor: str
    sole_owner: bool
    has_marks: bool = False
    specification: str
    has_state: bool = False
    is_saga: bool = False


def default_durable(app: str, actor: str) -> str:
    """The name of an actor's durable where its options give none."""
    return f"{app}-{actor}"


class CellSpec(msgspec.Struct, frozen=True, kw_only=True, tag="cell"):
    """One cell of an actor, and how its supervisor waits for it and restarts it."""

    actor: str
    index: int
    durable: str
    stream: str
    start_timeout_seconds: float
    hang_timeout_seconds: float
    ack_wait_seconds: float
    max_crashes: int = 3
    restart: RestartType = "permanent"

    @property
    def name(self) -> str:
        """The cell's name in the tree: "delay-monitor/0"."""
        return f"{self.actor}/{self.index}"


class SupervisorSpec(msgspec.Struct, frozen=True, kw_only=True, tag="supervisor"):
    """A supervisor and what it supervises, in start order."""

    name: str
    strategy: Strategy
    max_restarts: int
    max_seconds: float
    children: tuple[CellSpec | SupervisorSpec, ...]
    restart: RestartType = "permanent"


def cell_names(supervisor: SupervisorSpec) -> list[str]:
    """Return the names of all cells below a supervisor, in start order."""
    names: list[str] = []
    for child in supervisor.children:
        names += [child.name] if isinstance(child, CellSpec) else cell_names(child)
    return names


class AppSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A whole app; `root` is the supervisor that holds its children.

    `has_breakers` says that its cells share the state of circuit breakers, which takes a bucket.
    """

    name: str
    revision: int
    streams: tuple[StreamSpec, ...]
    consumers: tuple[ConsumerSpec, ...]
    root: SupervisorSpec
    has_breakers: bool = False
