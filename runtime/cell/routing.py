"""Where a delivery goes: to which handler, in which order, to which state, and under which mark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from understudy.actors.actor import ActorSpec
from understudy.actors.errors import DecodeError
from understudy.actors.handlers import HandlerSpec
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.failures import error_text
from understudy.runtime.cell.idempotency import Marks
from understudy.runtime.cell.turns import ONE_ORDER
from understudy.runtime.jetstream import headers
from understudy.runtime.jetstream.dead_letters import REPLAY_FOR
from understudy.runtime.stores.state import WHOLE_ACTOR, name_of

# Subjects may be made from data; only so many are remembered.
MAX_ROUTES = 1024
_REPLAY_FOR = REPLAY_FOR.encode()
_REPLAY = b"NATS/1.0\r\n%b: " % _REPLAY_FOR


class Routing:
    """Finds out of a delivery what has to be known before its turn comes.

    Args:
        spec: the actor's declaration, options overridden.
        durable: the actor's consumer.
        marks: the actor's, if it is idempotent.
        has_state: whether its handlers may have a state.
    """

    def __init__(self, spec: ActorSpec, durable: str, marks: Marks | None, *, has_state: bool) -> None:
        self._spec = spec
        self._durable = durable
        self._marks = marks
        self._has_state = has_state
        self._key = spec.options.key_function()
        # One state is changed by one event at a time.
        self._one_order = spec.options.ordered or (spec.options.state is not None and self._key is None)
        self._decodes_first = self._key is not None or (marks is not None and marks.needs_event)
        self._routes: dict[str, HandlerSpec | None] = {}

    def prepare(self, delivery: HeldDelivery) -> None:
        """Find the delivery's handler and, where the actor has such, its key and its mark; never raises.

        What goes into a batch is decoded here: it has to be readable. A dead letter that is replayed for
        another actor gets neither.
        """
        block = delivery.header_block
        if block and block.startswith(_REPLAY) and self.is_for_another(delivery):
            return
        try:
            handler = delivery.handler = self._routes[delivery.subject]
        except KeyError:
            handler = delivery.handler = self._route(delivery.subject)
        if self._one_order:
            delivery.key = ONE_ORDER
        if self._has_state and handler is not None and handler.wants_context and self._key is None:
            delivery.state_name = WHOLE_ACTOR
        if handler is None:
            return
        if self._decodes_first or handler.batch is not None:
            self.decode(delivery, handler)
            if self._key is not None and delivery.decode_error is None:
                self._find_key(delivery, handler, self._key)
        if self._marks is not None:
            self._marks.prepare(delivery)

    def decode(self, delivery: HeldDelivery, handler: HandlerSpec) -> None:
        """Find a delivery's event, or why it can't be read; never raises."""
        try:
            delivery.event = handler.decode(delivery.body, delivery.content_type, delivery.subject)
        except DecodeError as error:
            delivery.decode_error = error

    def is_for_another(self, delivery: HeldDelivery) -> bool:
        """Return whether this is a dead letter's replay, and another actor's."""
        durable = headers.find(delivery.header_block, _REPLAY_FOR)
        return durable is not None and durable != self._durable

    def _route(self, subject: str) -> HandlerSpec | None:
        handler = self._spec.route(subject)
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        self._routes[subject] = handler
        return handler

    def _find_key(self, delivery: HeldDelivery, handler: HandlerSpec, find: Callable[[Any], object]) -> None:
        try:
            key = find(delivery.event)
            hash(key)
            # None stands for no key, so that a key of None is wrapped.
            delivery.key = (key,)
            if self._has_state and handler.wants_context:
                delivery.state_name = name_of(key)
        except DecodeError as error:
            delivery.decode_error = error
        except Exception as error:  # noqa: BLE001, a user's key function may raise anything
            delivery.decode_error = DecodeError(f"the key can't be computed: {error_text(error)}")
