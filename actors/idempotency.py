"""Idempotency: by what an actor knows an event again that it has handled, and for how long."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args
from uuid import UUID

import msgspec

from understudy.actors.errors import DeclarationError, DecodeError
from understudy.actors.keywords import PolicyMeta
from understudy.actors.names import check_choice, check_integer, check_seconds

MarkStore: TypeAlias = Literal["kv", "memory"]
MARK_STORES: tuple[MarkStore, ...] = get_args(MarkStore)
_KEY = "the idempotency key"


class Idempotency(msgspec.Struct, metaclass=PolicyMeta, frozen=True, kw_only=True):
    """Skips events that the actor has handled before: `Actor, idempotency=Idempotency(window_seconds=3600)`.

    Each event has a key. When its handler has returned and what it published is confirmed, the key is marked,
    and for `window_seconds` an event whose key is marked is acknowledged without a run. A failed attempt
    leaves no mark.

    `key` is an attribute's name or a callable; one that needs a second argument is given the headers, too. It
    must come to a str, an int or a UUID. By default an event is known by the id that it was published with
    (`Understudy-Original-Id`, which a replayed dead letter has, else `Nats-Msg-Id`, else CloudEvents' source
    and id), else by its place in the stream. `ctx.delivery.idempotency_key` is the key, to be handed on.

    `store="kv"` marks in the app's bucket, for all cells and nodes; `"memory"` remembers in the cell alone:
    it forgets with its process, and knows nothing of other cells. Either way a cell remembers the last
    `capacity` keys that it has marked itself.
    """

    window_seconds: float
    key: str | Callable[..., object] | None = None
    store: MarkStore = "kv"
    capacity: int = 65_536

    def __post_init__(self) -> None:
        check_seconds(self.window_seconds, "Idempotency: window_seconds")
        # The server counts a message's lifetime in whole seconds.
        if self.window_seconds < 1:
            raise DeclarationError(f"Idempotency: window_seconds is {self.window_seconds}; give at least 1")
        check_choice(self.store, "Idempotency: store", MARK_STORES)
        check_integer(self.capacity, "Idempotency: capacity", minimum=1)
        key: object = self.key
        if key is not None and not callable(key) and not (isinstance(key, str) and key.isidentifier()):
            raise DeclarationError(f"Idempotency: key is {key!r}; give an attribute's name or a callable")
        self.key_function()

    def key_function(self) -> Callable[[Any, Callable[[], Mapping[str, str]]], str] | None:
        """What makes the key of an event, given that and what returns its headers; None for the default.

        It raises DecodeError where there is no key, since no later attempt would find one, and whatever a
        callable of the user's raises.
        """
        key = self.key
        if key is None:
            return None
        if isinstance(key, str):
            return lambda event, _headers: text_of(_read(event, key), _KEY)
        if _takes_headers(key):
            return lambda event, headers: text_of(key(event, headers()), _KEY)
        return lambda event, _headers: text_of(key(event), _KEY)


def _read(event: Any, name: str) -> object:
    try:
        return event[name] if type(event) is dict else getattr(event, name)
    except (KeyError, AttributeError) as error:
        kind = type(event).__qualname__
        raise DecodeError(f"{kind}: {name!r} can't be read as the idempotency key: {error}") from error


def text_of(value: object, what: str) -> str:
    """The text of what names something; DecodeError, which says what, if that may differ from run to run."""
    if isinstance(value, str) and value:
        return str(value)
    if isinstance(value, int | UUID) and not isinstance(value, bool):
        return str(value)
    # The text of anything else may differ from run to run, and nothing would ever be known again.
    raise DecodeError(f"{what} is {value!r}; give a str that isn't empty, an int or a UUID")


def _takes_headers(key: Callable[..., object]) -> bool:
    try:
        signature = inspect.signature(key)
    except ValueError:
        # Of some builtins, nobody can tell; what makes a key of an event alone is the common case.
        return False
    for arguments in ((None,), (None, None)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 2
    raise DeclarationError(
        f"Idempotency: key is {key!r}, which can't be called with an event, nor with an event and its headers"
    )
