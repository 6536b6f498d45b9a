"""The headers of an event on the wire: content type, message id, CloudEvents, trace context."""

from __future__ import annotations

from collections.abc import Mapping

from understudy.actors.codec import MSGPACK

# "NATS/1.0\r\n" before the headers and "\r\n" after them: ADR-4.
_FRAME_BYTES = 12


def event_headers(
    event_type: type, message_id: str, source: str, *, traceparent: str | None
) -> dict[str, str]:
    """Return the headers of an event, CloudEvents' binary mode among them.

    Args:
        event_type: an Event class, or any other.
        message_id: by which the stream drops repeats.
        source: who publishes.
        traceparent: W3C trace context of the cause, if there is one.
    """
    headers = {
        "Content-Type": MSGPACK,
        "Nats-Msg-Id": message_id,
        "ce-specversion": "1.0",
        "ce-id": message_id,
        "ce-type": type_name(event_type),
        "ce-source": source,
    }
    if traceparent is not None:
        headers["traceparent"] = traceparent
    return headers


def type_name(event_type: type) -> str:
    """Return the name by which an event's type is known on the wire."""
    spec = getattr(event_type, "__understudy__", None)
    return spec.name if spec is not None else event_type.__name__


def header_bytes(headers: Mapping[str, str]) -> int:
    """Return how many bytes the headers take on the wire, 0 for none."""
    if not headers:
        return 0
    text = "".join(headers) + "".join(headers.values())
    # Almost all headers are ASCII, and then nothing has to be encoded to be counted.
    return _FRAME_BYTES + 4 * len(headers) + (len(text) if text.isascii() else len(text.encode()))
