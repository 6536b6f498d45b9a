"""App: streams and the tree of actors, checked as a whole before anything starts."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from understudy.actors.actor import Actor, ActorSpec
from understudy.actors.errors import DeclarationError
from understudy.actors.keywords import declares
from understudy.actors.names import check_integer, check_name, nearest
from understudy.actors.policies import CircuitBreaker
from understudy.actors.saga import Saga
from understudy.actors.subjects import overlap
from understudy.actors.supervision import Child, ChildLike, Strategy, Supervisor
from understudy.runtime.sagas import with_signals
from understudy.runtime.specification import hash_specification
from understudy.runtime.specs import (
    AppSpec,
    CellSpec,
    ConsumerSpec,
    StreamSpec,
    SupervisorSpec,
    default_durable,
)
from understudy.runtime.stream import Stream, holds

ROOT = "root"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedChild:
    """An actor as a cell runs it: its class, name and options as overridden, and what belongs to it.

    `breaker_keys` says by name where the cells that share a breaker have its state: the app's under its own
    name, an actor's under the actor's and its own.
    """

    actor_class: type[Actor]
    spec: ActorSpec
    args: Mapping[str, Any]
    breakers: Mapping[str, CircuitBreaker]
    breaker_keys: Mapping[str, str]
    consumer: ConsumerSpec

    def make(self) -> Actor:
        """A new instance, made with the child's arguments."""
        return self.actor_class(**self.args)


class App:
    """A system of actors: `understudy run module:app` starts it.

    `breakers` are shared by name by all its actors (an actor's own of the same name goes first, and is shared
    by that actor's cells alone); `strategy`,
    `max_restarts` and `max_seconds` are those of the root supervisor. `revision` is raised by the user when
    a change of the tree or its options is deployed.
    """

    __slots__ = ("_breakers", "_children", "_consumers", "_root", "_streams", "name", "revision")

    name: str
    revision: int

    @declares("App")
    def __init__(
        self,
        name: str,
        *,
        streams: Sequence[Stream],
        children: Sequence[ChildLike],
        breakers: Sequence[CircuitBreaker] = (),
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
        revision: int = 0,
    ) -> None:
        self.name = check_name(name, "App")
        self.revision = check_integer(revision, f"app {name!r}: revision", minimum=0)
        where = f"app {name!r}"
        self._streams = _check_streams(streams, name)
        self._breakers = _check_breakers(breakers, where)
        self._root = Supervisor(
            ROOT, children=children, strategy=strategy, max_restarts=max_restarts, max_seconds=max_seconds
        )
        _check_supervisors(self._root, where)
        actors = list(_actors_below(self._root))
        _check_unique(where, "actors", (child.spec.name for child in actors), "give one a Child(…, name=)")
        for child in actors:
            _check_args(child, where)
            _check_needs(child, self._breakers, where)
        self._children = {child.spec.name: self._with_signals(child) for child in actors}
        self._consumers = {child.spec.name: self._consumer(child) for child in self._children.values()}
        durables = (f"{consumer.durable}" for consumer in self._consumers.values())
        _check_unique(where, "durables", durables, "each actor needs one of its own")
        _check_work_queues(self._streams, tuple(self._consumers.values()), where)

    def __repr__(self) -> str:
        return f"App({self.name!r})"

    def spec(self) -> AppSpec:
        """The whole app as plain values."""
        return AppSpec(
            name=self.name,
            revision=self.revision,
            streams=tuple(self._streams.values()),
            consumers=tuple(self._consumers.values()),
            root=self._supervisor(self._root),
            has_breakers=any(
                self._breakers or child.spec.options.breakers for child in self._children.values()
            ),
        )

    def child(self, name: str) -> ResolvedChild:
        """The actor of that name, ready to be made; KeyError if there is none."""
        child = self._children[name]
        own = {breaker.name: breaker for breaker in child.spec.options.breakers}
        return ResolvedChild(
            actor_class=child.actor_class,
            spec=child.spec,
            args=child.args,
            breakers={**self._breakers, **own},
            breaker_keys={
                **{name: name for name in self._breakers},
                **{name: f"{child.spec.name}.{name}" for name in own},
            },
            consumer=self._consumers[name],
        )

    def _with_signals(self, child: Child) -> Child:
        if not issubclass(child.actor_class, Saga):
            return child
        where = f"app {self.name!r}: actor {child.spec.name!r}"
        stream = _find_stream(self._streams, child.spec, where)
        durable = child.spec.options.durable or default_durable(self.name, child.spec.name)
        # The user's may be a child of another app, too.
        bound = copy.copy(child)
        bound.spec = with_signals(child.spec, child.actor_class, self._streams, stream, durable, where)
        return bound

    def _consumer(self, child: Child) -> ConsumerSpec:
        spec, options = child.spec, child.spec.options
        stream = _find_stream(self._streams, spec, f"app {self.name!r}: actor {spec.name!r}")
        return ConsumerSpec(
            durable=options.durable or default_durable(self.name, spec.name),
            stream=stream,
            filters=spec.filters,
            ack_wait_seconds=options.ack_wait_seconds,
            start=options.start,
            capacity=options.mailbox.capacity,
            cells=options.replicas,
            actor=spec.name,
            sole_owner=options.is_sole_owner,
            has_marks=options.idempotency is not None and options.idempotency.store == "kv",
            specification=hash_specification(spec, stream),
            has_state=options.state is not None,
            is_saga=issubclass(child.actor_class, Saga),
        )

    def _supervisor(self, supervisor: Supervisor) -> SupervisorSpec:
        children: list[CellSpec | SupervisorSpec] = []
        for child in supervisor.children:
            if isinstance(child, Supervisor):
                children.append(self._supervisor(child))
            else:
                children.extend(self._cells(child))
        return SupervisorSpec(
            name=supervisor.name,
            strategy=supervisor.strategy,
            max_restarts=supervisor.max_restarts,
            max_seconds=supervisor.max_seconds,
            children=tuple(children),
            restart=supervisor.restart,
        )

    def _cells(self, child: Child) -> Iterator[CellSpec]:
        consumer, options = self._consumers[child.spec.name], child.spec.options
        for index in range(options.replicas):
            yield CellSpec(
                actor=child.spec.name,
                index=index,
                durable=consumer.durable,
                stream=consumer.stream,
                start_timeout_seconds=options.start_timeout_seconds,
                hang_timeout_seconds=options.hang_timeout_seconds,
                ack_wait_seconds=options.ack_wait_seconds,
                max_crashes=options.retry.max_crashes,
                restart=options.restart,
            )


def _check_streams(streams: object, app: str) -> dict[str, StreamSpec]:
    where = f"app {app!r}"
    if not isinstance(streams, list | tuple) or not streams:
        raise DeclarationError(f"{where}: streams is {streams!r}; give a list of at least one Stream")
    for stream in streams:
        if not isinstance(stream, Stream):
            raise DeclarationError(f"{where}: {stream!r} is no Stream; write Stream(name, subjects=[…])")
    specs = {stream.spec.name: stream.spec for stream in streams}
    _check_unique(where, "streams", (stream.spec.name for stream in streams), "rename or merge them")
    letters = f"dead-letters.{app}.>"
    for spec in specs.values():
        for subject in spec.subjects:
            if overlap(subject, letters):
                raise DeclarationError(
                    f"{where}: the subject {subject!r} of stream {spec.name!r} takes in {letters!r}, "
                    f"which belongs to the app's dead letters; narrow it"
                )
    for one, other in combinations(specs.values(), 2):
        for left in one.subjects:
            for right in other.subjects:
                if overlap(left, right):
                    raise DeclarationError(
                        f"{where}: the subjects {left!r} of stream {one.name!r} and {right!r} of stream "
                        f"{other.name!r} overlap; a subject belongs to one stream"
                    )
    return specs


def _check_breakers(breakers: object, where: str) -> dict[str, CircuitBreaker]:
    if not isinstance(breakers, list | tuple) or not all(isinstance(one, CircuitBreaker) for one in breakers):
        raise DeclarationError(f"{where}: breakers is {breakers!r}; give a list of CircuitBreaker")
    _check_unique(where, "breakers", (breaker.name for breaker in breakers), "rename one")
    return {breaker.name: breaker for breaker in breakers}


def _check_supervisors(root: Supervisor, where: str) -> None:
    def names(supervisor: Supervisor) -> Iterator[str]:
        yield supervisor.name
        for child in supervisor.children:
            if isinstance(child, Supervisor):
                yield from names(child)

    _check_unique(where, "supervisors", names(root), f"rename one ({ROOT!r} is the app's own)")


def _actors_below(supervisor: Supervisor) -> Iterator[Child]:
    for child in supervisor.children:
        if isinstance(child, Supervisor):
            yield from _actors_below(child)
        else:
            yield child


def _check_unique(where: str, what: str, names: Iterable[str], remedy: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DeclarationError(f"{where}: two {what} are called {name!r}; {remedy}")
        seen.add(name)


def _check_args(child: Child, where: str) -> None:
    name = child.actor_class.__qualname__
    try:
        inspect.signature(child.actor_class).bind(**child.args)
    except TypeError as error:
        raise DeclarationError(
            f"{where}: actor {child.spec.name!r} can't be made with args={dict(child.args)!r}: {error}; "
            f"give what {name}.__init__ takes, as in Child({name}, args={{…}})"
        ) from error


def _check_needs(child: Child, of_app: Mapping[str, CircuitBreaker], where: str) -> None:
    declared = {*of_app, *(breaker.name for breaker in child.spec.options.breakers)}
    for handler in child.spec.handlers:
        for name in handler.breakers:
            if name not in declared:
                hint = nearest(name, declared) or f"; add CircuitBreaker({name!r}) to the actor or the app"
                raise DeclarationError(
                    f"{where}: actor {child.spec.name!r}: {handler.method} needs the circuit breaker "
                    f"{name!r}, which neither the actor nor the app has{hint}"
                )


def _find_stream(streams: Mapping[str, StreamSpec], spec: ActorSpec, where: str) -> str:
    wanted = ", ".join(map(repr, spec.filters))
    chosen = spec.options.stream
    if chosen is not None:
        if chosen not in streams:
            raise DeclarationError(
                f"{where}: stream {chosen!r} is not among the app's streams{nearest(chosen, streams)}"
            )
        if not streams[chosen].existing and not holds(streams[chosen], spec.filters):
            raise DeclarationError(
                f"{where} handles {wanted}, which {_describe(streams[chosen])} does not hold"
            )
        return chosen
    for stream in streams.values():
        if holds(stream, spec.filters):
            return stream.name
    known = "; ".join(_describe(stream) for stream in streams.values())
    raise DeclarationError(
        f"{where} handles {wanted}, but no stream of the app holds all of that ({known}); "
        f"add the subjects to one stream, or name an existing one by the actor's option stream="
    )


def _describe(stream: StreamSpec) -> str:
    if stream.existing:
        return f"stream {stream.name!r} (existing)"
    return f"stream {stream.name!r} ({', '.join(stream.subjects)})"


def _check_work_queues(
    streams: Mapping[str, StreamSpec], consumers: tuple[ConsumerSpec, ...], where: str
) -> None:
    for one, other in combinations(consumers, 2):
        if one.stream != other.stream or streams[one.stream].retention != "workqueue":
            continue
        for left in one.filters:
            for right in other.filters:
                if overlap(left, right):
                    raise DeclarationError(
                        f"{where}: actors {one.actor!r} ({left}) and {other.actor!r} ({right}) both read "
                        f"the work-queue stream {one.stream!r}, where each message goes to one reader; "
                        f"handle them in one actor, or give the stream another retention"
                    )
