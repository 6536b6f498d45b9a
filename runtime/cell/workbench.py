"""What it takes to handle deliveries, in whichever way: a cell's pipelines share one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from understudy.runtime.breakers.breakers import Breakers
from understudy.runtime.cell.calls import Calls
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.failures import Broker, Failures
from understudy.runtime.cell.idempotency import Marks
from understudy.runtime.cell.ledger import Ledger
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.meter import Meter
from understudy.runtime.cell.status import Status
from understudy.runtime.jetstream.publish_window import PublishWindow
from understudy.runtime.jetstream.settlement import Settlement


class Workbench(msgspec.Struct, frozen=True, kw_only=True):
    """What handles deliveries is given one of these.

    Args:
        broker, window, settlement: the data path.
        mailbox, ledger, status: what the cell holds and says.
        meter: counts what is handled.
        calls: runs the handlers.
        failures: settles what has failed.
        breakers: the cell's.
        marks: knows what was handled before; None if the actor isn't idempotent.
        acknowledge: acks and returns when that is confirmed; None if acks are fire and forget.
        settled: called when the mailbox has room again.
        stop: has the cell stop itself.
    """

    broker: Broker
    window: PublishWindow
    settlement: Settlement
    mailbox: Mailbox
    ledger: Ledger
    status: Status
    meter: Meter
    calls: Calls
    failures: Failures
    breakers: Breakers
    marks: Marks | None
    acknowledge: Callable[[HeldDelivery], Awaitable[None]] | None
    settled: Callable[[], None]
    stop: Callable[[], None]
