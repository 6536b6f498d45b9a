"""How an event is to be published, where that is more than to which subject."""

from __future__ import annotations

from typing import NamedTuple


class Sending(NamedTuple):
    """What `ctx.publish` was told beside the event.

    Args:
        subject: overrides the event's own; None for that.
        delay_seconds: after which its stream is to have it; None for at once.
        timer: by which it may be cancelled; empty for one that can't be.
        idempotency_key: by which its receivers know it; empty for its message id.
    """

    subject: str | None
    delay_seconds: float | None = None
    timer: str = ""
    idempotency_key: str = ""


# Beside an event: the subject that overrides its own, or all of it.
Where = str | Sending | None
