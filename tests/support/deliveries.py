"""Deliveries and handlers that have nothing behind them, for lanes that are tested by themselves."""

from __future__ import annotations

from collections.abc import Hashable

from understudy.actors.handlers import HandlerSpec
from understudy.actors.policies import Batch
from understudy.runtime.cell.delivery import HeldDelivery


def handler_of(method: str, *, batch: Batch | None = None, breakers: tuple[str, ...] = ()) -> HandlerSpec:
    """Return a handler that nobody calls."""
    return HandlerSpec(
        method=method,
        filter="orders.placed",
        type=None,
        raw=False,
        wants_context=False,
        is_async=True,
        batch=batch,
        decode=lambda *_: None,
        breakers=breakers,
    )


def delivery(sequence: int, key: Hashable = None, handler: HandlerSpec | None = None) -> HeldDelivery:
    """Return a delivery of a key, None for none, and of a handler, None for one that takes single ones."""
    made = HeldDelivery(
        stream="ORDERS",
        subject="orders.placed",
        reply=b"",
        header_block=b"",
        body=b"",
        sequence=sequence,
        delivery_count=1,
        slot=0,
        extended_at=0.0,
    )
    made.key = None if key is None else (key,)
    made.handler = handler
    return made
