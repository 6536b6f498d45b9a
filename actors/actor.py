"""Actor: a class whose methods handle events, one instance per cell.

    class DelayMonitor(Actor, key="carrier"):
        @handles
        async def departed(self, event: Departed) -> Delayed | None: ...

All of it is checked when the class is made.
"""

import dataclasses
import inspect
from collections.abc import Awaitable
from typing import Any, ClassVar, Unpack, get_origin, is_typeddict

from understudy.actors.context import StartContext
from understudy.actors.errors import DeclarationError
from understudy.actors.handlers import HandlerSpec, find_handlers
from understudy.actors.names import kebab_case, nearest
from understudy.actors.options import ActorOptions, OptionKeywords, make_options
from understudy.actors.subjects import matches, specificity, without_covered


@dataclasses.dataclass(frozen=True, slots=True)
class ActorSpec:
    """What an actor class declares: its name, handlers and options."""

    name: str
    handlers: tuple[HandlerSpec, ...]
    options: ActorOptions

    @property
    def filters(self) -> tuple[str, ...]:
        """What its consumer asks for: each handler's filter but those that a wider one covers."""
        return without_covered(tuple(handler.filter for handler in self.handlers))

    def route(self, subject: str) -> HandlerSpec | None:
        """The handler of the most specific filter that matches, or None.

        Compares every filter: a caller with many deliveries per subject remembers the answer.
        """
        matching = [handler for handler in self.handlers if matches(handler.filter, subject)]
        return min(matching, key=lambda handler: specificity(handler.filter), default=None)


class Actor:
    """The base of actors; class keywords are its options, inherited by subclasses.

    `key` (an attribute's name or a callable: one event at a time per key, in stream order), `mailbox` (its
    capacity is 1024; 4096 with `state`, since events of a key that wait together share a commit),
    `concurrency` (1; 16 with `key`: handlers of one instance that may run at once and then share `self`),
    `ordered` (False: one event at a time in stream order), `state` (a subclass of State: `ctx.state` is that
    of the event's key, or without `key` the actor's; it makes one cell the sole owner of the durable, as
    `key` and `ordered` do), `idempotency` (None; with it events that were handled are skipped when they come
    again), `replicas` (1: cells of this actor; they share its events, but of a sole owner's all but one are
    hot standbys), `retry`, `restart` ("permanent"; "transient" is not started again once it has called
    `ctx.stop()`, "temporary" never), `restart_on` (exception types that mean the actor itself is broken: the
    attempt fails as any other, and then the cell is restarted, which counts; none),
    `max_consecutive_failures` (None; so many failed handler runs in a row do the same),
    `handler_timeout_seconds` (30), `hang_timeout_seconds` (8, below two thirds of `ack_wait_seconds`),
    `start_timeout_seconds` (30), `ack_wait_seconds` (15), `on_failure` ("redeliver"; "block" with `key` or
    `ordered`), `double_ack` (False; True: a delivery is done when the server has confirmed its ack, which
    JetStream calls AckSync), `breakers`, `durable`, `stream`, and `start` ("all"; "new" skips what is older
    than the durable).
    """

    __understudy__: ClassVar[ActorSpec]

    def __init_subclass__(cls, **options: Unpack[OptionKeywords]) -> None:
        super().__init_subclass__()
        where = f"actor {cls.__qualname__}"
        given: dict[str, object] = {}
        for base in reversed(cls.__bases__):
            if issubclass(base, Actor) and base is not Actor:
                given.update(base.__understudy__.options.given)
        given.update(options)
        cls.__understudy__ = ActorSpec(
            name=kebab_case(cls.__name__), handlers=find_handlers(cls), options=make_options(given, where)
        )
        check_handlers(cls.__understudy__, where)
        _check_hooks(cls, where)

    # The hooks' results are typed so that both `async def` and `def` may override them.
    def on_start(self, ctx: StartContext) -> Awaitable[None] | None:
        """Opens what the handlers need: pools, clients, files. Does nothing by default.

        Called once per cell start, in the cell's event loop, before the first event; a `def`
        runs in a thread. It must end within `start_timeout_seconds`. If it raises, the cell takes no
        event and starts again after a backoff of up to 30 s; that doesn't count towards restart intensity.
        """

    def on_stop(self) -> Awaitable[None] | None:
        """Closes what `on_start` opened. Does nothing by default.

        Called once, in the cell's event loop, when no handler runs any more; a `def` runs in
        a thread. It counts towards `shutdown_timeout_seconds`. If it raises, that is logged and the stop
        goes on. A killed cell never calls it.
        """

    def on_restart(self, reason: str) -> Awaitable[None] | None:
        """Tells that this cell has been there before, and how that ended. Does nothing by default.

        Called once per start but the cell's first in a run, before `on_start`, in the cell's event loop; a
        `def` runs in a thread. `reason` is "killed by SIGKILL", say; also a cell that ended without a fault
        starts so: "restarted by the operator", or together with a sibling that failed. If it raises, the
        start has failed, as with `on_start`.
        """


def check_handlers(spec: ActorSpec, where: str) -> None:
    """Raises DeclarationError if a handler and the options don't go together.

    A key given by name, that of the idempotency included, must be on every event of known type; a batch must
    fit into the mailbox, and has no state.
    """
    capacity = spec.options.mailbox.capacity
    for handler in spec.handlers:
        if handler.batch is not None and spec.options.state is not None:
            raise DeclarationError(
                f"{where}: {handler.method} takes batches, which have no state; handle the events one by one "
                f"(their commits are shared all the same), or in an actor without state"
            )
        if handler.batch is not None and handler.batch.size > capacity:
            raise DeclarationError(
                f"{where}: {handler.method} takes batches of {handler.batch.size}, but the mailbox holds "
                f"{capacity}; lower the batch's size or raise mailbox=Mailbox(capacity=…)"
            )
    _check_key(spec, spec.options.key, "key", where)
    if spec.options.idempotency is not None:
        _check_key(spec, spec.options.idempotency.key, "the idempotency's key", where)


# What each hook is called with, as it is named where one takes something else.
_HOOKS = {"on_start": ("self", "ctx"), "on_restart": ("self", "reason"), "on_stop": ("self",)}


def _check_hooks(cls: type[Actor], where: str) -> None:
    """Raises DeclarationError if a hook can't be called as it will be: its cell would never come up."""
    for name, takes in _HOOKS.items():
        hook = inspect.getattr_static(cls, name)
        if not inspect.isfunction(hook):
            continue  # a static method, or an object that is called: its signature is its own affair
        try:
            inspect.signature(hook).bind(*takes)
        except TypeError as error:
            raise DeclarationError(
                f"{where}: {name} is called as {name}({', '.join(takes[1:])}): {error}; "
                f"write def {name}({', '.join(takes)})"
            ) from None


def _check_key(spec: ActorSpec, key: object, name: str, where: str) -> None:
    if not isinstance(key, str):
        return
    for handler in spec.handlers:
        if handler.raw:
            raise DeclarationError(
                f"{where}: {handler.method} takes bytes, which have no {key!r}; give {name} a callable"
            )
        fields = _fields_of(handler.type)
        if fields is not None and key not in fields and not hasattr(handler.type, key):
            event = getattr(handler.type, "__qualname__", str(handler.type))
            raise DeclarationError(
                f"{where}: {name} is {key!r}, but {event}, which {handler.method} takes, has no such field"
                f"{nearest(key, fields)}"
            )


def _fields_of(type_: Any) -> tuple[str, ...] | None:
    # None where only the values will tell: dicts and the like.
    type_ = get_origin(type_) or type_
    if is_typeddict(type_):
        return tuple(type_.__annotations__)
    for attribute in ("__struct_fields__", "__dataclass_fields__"):
        if hasattr(type_, attribute):
            return tuple(getattr(type_, attribute))
    return None
