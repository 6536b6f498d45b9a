"""Supervisor and Child: the tree that a user declares."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, Unpack, get_args

from understudy.actors.actor import Actor, ActorSpec, check_handlers
from understudy.actors.errors import DeclarationError
from understudy.actors.keywords import check_keywords, declares
from understudy.actors.names import check_choice, check_integer, check_name, check_seconds, nearest
from understudy.actors.options import OPTIONS, RESTART_TYPES, OptionKeywords, RestartType, make_options

Strategy: TypeAlias = Literal["one_for_one", "one_for_all", "rest_for_one"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

_PLAIN = (bool, int, float, str, bytes, type(None))


class Child:
    """An actor's place in the tree, where its class alone isn't enough.

    `name` tells two children of one class apart, `args` are keyword arguments of its `__init__` (plain
    values), everything else overrides an option of the class.

    Raises:
        DeclarationError: the class is no actor or handles nothing, or what is given can't be used.
    """

    __slots__ = ("actor_class", "args", "spec")

    actor_class: type[Actor]
    args: Mapping[str, Any]
    spec: ActorSpec

    @declares("Child")
    def __init__(
        self,
        actor_class: type[Actor],
        *,
        name: str | None = None,
        args: Mapping[str, Any] | None = None,
        **overrides: Unpack[OptionKeywords],
    ) -> None:
        if not _is_actor_class(actor_class):
            raise DeclarationError(f"Child: {actor_class!r} is no subclass of Actor; give the class itself")
        declared = actor_class.__understudy__
        where = f"Child({actor_class.__qualname__})"
        if not declared.handlers:
            raise DeclarationError(
                f"{where}: {actor_class.__qualname__} handles nothing; put @handles on one of its methods"
            )
        check_keywords(overrides, ("name", "args", *OPTIONS), where, OptionKeywords)
        name = check_name(declared.name if name is None else name, where)
        self.actor_class = actor_class
        self.args = _check_args(actor_class, {} if args is None else args, where)
        options = make_options({**declared.options.given, **overrides}, where)
        self.spec = ActorSpec(name=name, handlers=declared.handlers, options=options)
        check_handlers(self.spec, where)

    def __repr__(self) -> str:
        return f"Child({self.actor_class.__qualname__}, name={self.spec.name!r})"


ChildLike: TypeAlias = "type[Actor] | Child | Supervisor"


class Supervisor:
    """A node of the tree: it restarts its children, and gives up when that happens too often.

    `strategy` says who is restarted with a child that has ended: nobody (`one_for_one`), all its siblings
    (`one_for_all`), or those after it (`rest_for_one`). Siblings are drained first, in reverse start order,
    then all start in order; it counts as one restart.

    More than `max_restarts` restarts of its children together within `max_seconds` stop its whole subtree,
    and its own supervisor restarts that. `restart` is `permanent`; a `transient` one is restarted if it
    crashed but not if it gave up, which OTP counts as a normal end, a `temporary` one never.
    """

    __slots__ = ("children", "max_restarts", "max_seconds", "name", "restart", "strategy")

    name: str
    strategy: Strategy
    restart: RestartType
    max_restarts: int
    max_seconds: float
    children: tuple["Child | Supervisor", ...]

    @declares("Supervisor")
    def __init__(
        self,
        name: str,
        *,
        children: Sequence[ChildLike],
        strategy: Strategy = "one_for_one",
        restart: RestartType = "permanent",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
    ) -> None:
        where = f"supervisor {name!r}"
        self.name = check_name(name, "Supervisor")
        check_choice(strategy, f"{where}: strategy", STRATEGIES)
        self.strategy = strategy
        check_choice(restart, f"{where}: restart", RESTART_TYPES)
        self.restart = restart
        self.max_restarts = check_integer(max_restarts, f"{where}: max_restarts", minimum=0)
        self.max_seconds = check_seconds(max_seconds, f"{where}: max_seconds")
        self.children = _read_children(children, where)

    def __repr__(self) -> str:
        return f"Supervisor({self.name!r}, children={list(self.children)!r})"


def _read_children(children: object, where: str) -> tuple[Child | Supervisor, ...]:
    if not isinstance(children, list | tuple) or not children:
        raise DeclarationError(f"{where}: children is {children!r}; give a list of at least one actor class")
    return tuple(_read_child(child, where) for child in children)


def _read_child(child: object, where: str) -> Child | Supervisor:
    if isinstance(child, Child | Supervisor):
        return child
    if _is_actor_class(child):
        return Child(child)  # type: ignore[arg-type]
    if isinstance(child, Actor):
        raise DeclarationError(
            f"{where}: a child is an instance of {type(child).__qualname__}; give the class, "
            f"or Child({type(child).__qualname__}, args={{…}}): each cell makes its own instance"
        )
    raise DeclarationError(f"{where}: {child!r} is no child; give an Actor class, a Child or a Supervisor")


def _is_actor_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Actor) and value is not Actor


def _check_args(actor_class: type[Actor], args: object, where: str) -> Mapping[str, Any]:
    if not isinstance(args, Mapping) or not all(isinstance(name, str) for name in args):
        raise DeclarationError(f"{where}: args is {args!r}; give a dict of keyword arguments")
    for name, value in args.items():
        if not _is_plain(value):
            raise DeclarationError(
                f"{where}: args[{name!r}] is a {type(value).__qualname__}; give plain values "
                f"(numbers, texts, bytes, lists, dicts) and make the rest in on_start"
            )
    parameters = inspect.signature(actor_class).parameters.values()
    known = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        for name in args:
            if name not in known:
                raise DeclarationError(
                    f"{where}: {actor_class.__qualname__}.__init__ takes no {name!r}{nearest(name, known)}"
                )
    return dict(args)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(one) for key, one in value.items())
    return isinstance(value, _PLAIN)
