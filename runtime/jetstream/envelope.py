"""The headers of an event on the wire: content type, message id, CloudEvents, trace context."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from understudy.actors.codec import MSGPACK
from understudy.actors.errors import EncodeError

# "NATS/1.0\r\n" before the headers and "\r\n" after them: ADR-4.
_FRAME_BYTES = 12
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def event_block(
    event_type: type, message_id: str, source: str, *, traceparent: str | None, tracestate: str = ""
) -> bytes:
    """Return the header block of an event, CloudEvents' binary mode among its headers.

    Args:
        event_type: an Event class, or any other.
        message_id: by which the stream drops repeats.
        source: who publishes.
        traceparent: W3C trace context of the cause, if there is one.
        tracestate: what goes with it, empty if nothing does.

    Raises:
        EncodeError: the message id or the source can't be a header.
    """
    number = _value("Nats-Msg-Id", message_id)
    trace = b"" if traceparent is None else b"traceparent: %b\r\n" % _value("traceparent", traceparent)
    if trace and tracestate:
        trace += b"tracestate: %b\r\n" % _value("tracestate", tracestate)
    return b"%bNats-Msg-Id: %b\r\nce-id: %b\r\n%b\r\n" % (_start(event_type, source), number, number, trace)


def type_name(event_type: type) -> str:
    """Return the name by which an event's type is known on the wire."""
    spec = getattr(event_type, "__understudy__", None)
    return spec.name if spec is not None else event_type.__name__


def template_of(event_type: type) -> str:
    """Return the template of the subjects that an event's type declares; empty if it declares none."""
    spec = getattr(event_type, "__understudy__", None)
    return spec.subject if spec is not None else ""


def header_block(headers: Mapping[str, str]) -> bytes:
    """Return the block of some headers, empty for none.

    Args:
        headers: names and values. What wasn't UTF-8 where it came from, and is surrogate escapes here, goes
            out as it came.

    Raises:
        EncodeError: a name or value can't be written, a line break in it for example: it would be a header
            of its own.
    """
    if not headers:
        return b""
    lines = [b"NATS/1.0"]
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise EncodeError(
                f"the header name {name!r} can't be written; use letters, digits and the marks of RFC 9110"
            )
        lines.append(b"%b: %b" % (name.encode(), _value(name, value)))
    return b"\r\n".join([*lines, b"", b""])


def with_headers(block: bytes, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return an event's block with more headers.

    Raises:
        EncodeError: a value can't be written.
    """
    lines = b"".join(b"%b: %b\r\n" % (name.encode(), _value(name, value)) for name, value in headers)
    return b"%b%b\r\n" % (block[:-2], lines)


def header_bytes(headers: Mapping[str, str]) -> int:
    """Return how many bytes the headers take on the wire, 0 for none."""
    if not headers:
        return 0
    text = "".join(headers) + "".join(headers.values())
    size = len(text) if text.isascii() else len(text.encode(errors="surrogateescape"))
    # Almost all headers are ASCII, and then nothing has to be encoded to be counted.
    return _FRAME_BYTES + 4 * len(headers) + size


@lru_cache(maxsize=1024)
def _start(event_type: type, source: str) -> bytes:
    constant = {
        "Content-Type": MSGPACK,
        "ce-specversion": "1.0",
        "ce-type": type_name(event_type),
        "ce-source": source,
    }
    return header_block(constant)[:-2]


def _value(name: str, value: str) -> bytes:
    if "\n" in value or "\r" in value:
        raise EncodeError(f"the header {name!r} has a line break in its value: {value[:80]!r}; take it out")
    try:
        return value.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise EncodeError(f"the header {name!r} can't be written: {error}") from error
