"""By what an event is known, however often it is stored."""

from __future__ import annotations

from collections.abc import Callable

# On a replay, and wherever else an event is published anew: what it was known by before.
ORIGINAL_ID = "Understudy-Original-Id"


def event_id(header: Callable[[str], str | None], stream: str, stream_created: str, sequence: int) -> str:
    """Return an event's id: the one that it was published with, else its place in the stream.

    Args:
        header: returns a header's value by its name, if there is one.
        stream: where it is stored.
        stream_created: when that stream was made, as the server says it.
        sequence: the event's place in it.
    """
    return (
        header(ORIGINAL_ID)
        or header("Nats-Msg-Id")
        or _cloud_event_id(header)
        or f"{stream}.{stream_created}.{sequence}"
    )


def _cloud_event_id(header: Callable[[str], str | None]) -> str:
    # Only source and id together name one event, as CloudEvents' specification says.
    number = header("ce-id")
    source = header("ce-source")
    return f"{source} {number}" if source and number else number or ""
