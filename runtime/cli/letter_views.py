"""Dead letters as people and programs read them."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from understudy.actors.codec import JSON, decode_untyped
from understudy.actors.errors import DecodeError
from understudy.runtime.cli.words import plural
from understudy.runtime.jetstream.stored_letters import StoredLetter

# Where no terminal says how wide it is.
COLUMNS = 100
HEX_BYTES = 512
_TITLES = ("ID", "AGE", "ACTOR", "REASON", "SUBJECT", "ERROR")
_WIDEST = (20, 6, 24, 12, 24, 0)
_NARROWEST_LAST = 20

Encoding = Literal["msgpack", "json", "text", "base64"]


def summary(letter: StoredLetter) -> dict[str, Any]:
    """Return a letter without headers and body, as plain values."""
    return {
        "id": letter.id,
        "app": letter.app,
        "actor": letter.actor,
        "durable": letter.durable,
        "reason": letter.reason,
        "error": readable(letter.error),
        "attempts": letter.attempts,
        "time": letter.time.isoformat(timespec="milliseconds"),
        "stream": letter.stream,
        "subject": readable(letter.subject),
        "sequence": letter.sequence,
        "trace_id": letter.trace_id,
        "size": letter.size,
    }


def whole(letter: StoredLetter, body: bytes | None) -> dict[str, Any]:
    """Return all of a letter as values that msgspec writes as JSON.

    Args:
        letter: which.
        body: the original's; None if it was left out and is gone.
    """
    content: dict[str, Any] = {"body": None, "body_encoding": None}
    if body is not None:
        encoding, value = decode_body(body, letter.original_headers.get("Content-Type"))
        content = {"body": msgspec.Raw(value), "body_encoding": encoding}
    return {
        **summary(letter),
        "headers": {
            readable(name): readable(value) for name, value in sorted(letter.original_headers.items())
        },
        "headers_left_out": [readable(name) for name in letter.headers_left_out],
        "body_left_out": letter.is_body_left_out,
        **content,
    }


def decode_body(body: bytes, content_type: str | None) -> tuple[Encoding, bytes]:
    """Return how a body was encoded, and its value as JSON.

    A body that is neither MessagePack nor JSON is text if it reads as such, else base64.

    Args:
        body: of an event.
        content_type: its header, if it has one.
    """
    try:
        value = msgspec.json.encode(decode_untyped(body, content_type))
    # What MessagePack may hold and JSON may not: keys that are bytes or arrays, text that is no Unicode.
    except (DecodeError, msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        pass
    else:
        # By what the decoder goes by.
        is_json = body[:1] in (b"{", b"[") if content_type is None else JSON in content_type.lower()
        return "json" if is_json else "msgpack", value
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = "\0"
    if all(character.isprintable() or character in "\t\r\n" for character in text):
        return "text", msgspec.json.encode(text)
    return "base64", msgspec.json.encode(base64.b64encode(body).decode())


def describe(letter: StoredLetter, body: bytes | None) -> str:
    """Return all of a letter for people.

    Args:
        letter: which.
        body: the original's; None if it was left out and is gone.
    """
    attempts = f", after {plural(letter.attempts, 'failed attempt')}" if letter.attempts else ""
    facts = {
        "actor": f"{letter.actor} (consumer {letter.durable})",
        "reason": f"{letter.reason}{attempts}",
        "error": letter.error,
        "time": f"{letter.time.isoformat(timespec='milliseconds')}, {age(letter.stored_at)} ago",
        "subject": letter.subject,
        "stored": f"sequence {letter.sequence} of stream {letter.stream}",
        "trace id": letter.trace_id,
    }
    lines = [f"dead letter {letter.id} of {letter.app}"]
    lines += [f"  {name:9} {readable(value)}" for name, value in facts.items()]
    lines.append("headers")
    lines += [
        f"  {readable(name)}: {readable(value)}" for name, value in sorted(letter.original_headers.items())
    ]
    if letter.headers_left_out:
        lines.append(f"  left out: {readable(', '.join(letter.headers_left_out))}")
    return "\n".join([*lines, *_describe_body(letter, body)])


def _describe_body(letter: StoredLetter, body: bytes | None) -> Iterable[str]:
    if body is None:
        yield "body: too large for a letter, and no longer in its stream"
        return
    encoding, value = decode_body(body, letter.original_headers.get("Content-Type"))
    origin = ", read from its stream" if letter.is_body_left_out else ""
    if encoding == "base64":
        yield f"body ({len(body)} bytes, neither MessagePack nor JSON nor text{origin})"
        shown = body[:HEX_BYTES]
        yield from (f"  {shown[start : start + 16].hex(' ')}" for start in range(0, len(shown), 16))
        if len(body) > HEX_BYTES:
            yield f"  and {len(body) - HEX_BYTES} bytes more; --json has all of them"
        return
    yield f"body ({len(body)} bytes, {encoding}{origin})"
    text = body.decode() if encoding == "text" else msgspec.json.format(value, indent=2).decode()
    yield from (f"  {readable(line)}" for line in text.splitlines())


def table(letters: Iterable[StoredLetter], *, columns: int) -> str:
    """Return letters as a table, a line each.

    Args:
        letters: which.
        columns: how wide it is to be, in characters; what doesn't fit is cut, the errors first.
    """
    rows: list[tuple[str, ...]] = [_TITLES]
    for letter in letters:
        cells = (
            str(letter.id), age(letter.stored_at), letter.actor, letter.reason, letter.subject, letter.error,
        )  # fmt: skip
        rows.append(tuple(map(readable, cells)))
    return fit_rows(rows, _WIDEST, columns=columns)


def fit_rows(rows: list[tuple[str, ...]], widest: tuple[int, ...], *, columns: int) -> str:
    """Return rows as a table, a line each.

    Args:
        rows: their cells, the titles first.
        widest: how wide each column may be; the last has what is left.
        columns: how wide it is to be, in characters; what doesn't fit is cut, the last column first.
    """
    from rich.cells import cell_len, set_cell_size

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    widths = [min(width, most) for width, most in zip(widths, widest, strict=True)]
    widths[-1] = max(_NARROWEST_LAST, columns - sum(widths[:-1]) - 2 * len(widths[:-1]))

    def fit(cell: str, width: int) -> str:
        return set_cell_size(cell, width) if cell_len(cell) <= width else set_cell_size(cell, width - 1) + "…"

    return "\n".join("  ".join(map(fit, row, widths)).rstrip() for row in rows)


def age(stored_at: int) -> str:
    """Return how long ago something was, in its largest unit: 45s, 12m, 3h, 9d.

    Args:
        stored_at: when, in nanoseconds since 1970.
    """
    seconds = max(0, time.time_ns() - stored_at) // 1_000_000_000
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def readable(text: str) -> str:
    """Return what a terminal shows and doesn't obey; bytes that are no text as their escapes."""
    text = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
