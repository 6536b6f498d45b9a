"""Dead letters: what can't be handled, kept whole in a stream of its own with the reason why.

`letter_stream` reads them again, and `replay` gives them back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from understudy.runtime.jetstream.envelope import header_bytes
from understudy.runtime.jetstream.publish_window import MAX_HEADER_BYTES, PublishWindow

RENAMED = "Understudy-Original-"
# Says on a replay which durable it is for. It is the first of the headers, so that nobody has to search.
REPLAY_FOR = "Understudy-Replay-For"
_REPLAY = b"NATS/1.0\r\n%b: " % REPLAY_FOR.encode()
MAX_ERROR_CHARACTERS = 2000
# What a header's name may consist of; other clients write others, and nats-py doesn't.
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Room for the subject and what the protocol adds, below the server's max_payload.
_MARGIN_BYTES = 256


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery that is given up.

    Args:
        app, actor, durable: who gives it up.
        stream, stream_created, subject, sequence: where it came from.
        body, headers: the original's.
        reason: `undecodable`, `rejected`, `exhausted` or `crashed`.
        error: the last failure's text.
        attempts: handler runs that failed.
        trace_id: the trace it belongs to.
    """

    app: str
    actor: str
    durable: str
    stream: str
    stream_created: str
    subject: str
    sequence: int
    body: bytes
    headers: Mapping[str, str]
    reason: str
    error: str
    attempts: int
    trace_id: str


async def write(window: PublishWindow, letter: DeadLetter, max_payload: int) -> int:
    """Store a dead letter and return when its stream has confirmed it.

    Args:
        window: publishes it.
        letter: what is given up.
        max_payload: the server's bound, in bytes of body and headers together. Above it the body is left
            out, and headers over 64 KiB are dropped longest first; both are named in the letter. So are
            headers whose names can't be written.

    Returns:
        Its id, by which `understudy dead-letters` knows it.

    Raises:
        PublishError: it was not confirmed; the delivery may not be termed.
    """
    ours = {
        "Nats-Msg-Id": f"{letter.durable}.{letter.stream_created}.{letter.sequence}",
        "Understudy-Reason": letter.reason,
        "Understudy-Error": _line(letter.error),
        "Understudy-Stream": letter.stream,
        "Understudy-Subject": letter.subject,
        "Understudy-Sequence": str(letter.sequence),
        "Understudy-Attempts": str(letter.attempts),
        "Understudy-Actor": letter.actor,
        "Understudy-Durable": letter.durable,
        "Understudy-Time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "Understudy-Trace-Id": letter.trace_id,
    }
    # A copied Nats-Expected-Stream would be refused for ever, a copied id would swallow a second letter.
    originals = {
        (RENAMED + name if name.lower().startswith("nats-") else name): _unbroken(value)
        for name, value in letter.headers.items()
        if _HEADER_NAME.fullmatch(name)
    }
    unwritable = [name for name in letter.headers if not _HEADER_NAME.fullmatch(name)]
    dropped = unwritable + _too_long(originals, min(MAX_HEADER_BYTES, max_payload) - header_bytes(ours))
    for name in dropped:
        originals.pop(name, None)
    if dropped:
        ours["Understudy-Headers-Left-Out"] = _line(", ".join(dropped))
    body = letter.body
    headers = {**originals, **ours}
    if len(body) + header_bytes(headers) + _MARGIN_BYTES > max_payload:
        headers["Understudy-Body-Left-Out"] = f"{letter.stream} sequence {letter.sequence}"
        body = b""
    ack = await window.publish(f"dead-letters.{letter.app}.{letter.actor}", body, headers)
    return ack.seq


def is_replay(block: bytes) -> bool:
    """Return whether a message is the replay of a dead letter, by its headers."""
    return block.startswith(_REPLAY)


def _too_long(headers: Mapping[str, str], room: int) -> list[str]:
    """Return the names of the headers to leave out so that the rest fits, longest first."""
    size = header_bytes(headers) + _MARGIN_BYTES
    if size <= room:
        return []
    dropped = []
    # Their names take room in turn.
    size += MAX_ERROR_CHARACTERS
    for name in sorted(headers, key=lambda name: len(headers[name]), reverse=True):
        if size <= room:
            break
        dropped.append(name)
        size -= len(f"{name}: {headers[name]}\r\n".encode(errors="surrogateescape"))
    return dropped


def _unbroken(value: str) -> str:
    # A server passes on a header with half a line break in it; nobody may write one.
    return value.replace("\r", " ").replace("\n", " ")


def _line(text: str) -> str:
    # An exception's text may hold lone surrogates, from a file's name for example.
    encodable = text.encode(errors="backslashreplace").decode()
    return " ".join(encodable.split())[:MAX_ERROR_CHARACTERS]
