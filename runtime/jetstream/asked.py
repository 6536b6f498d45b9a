"""What a request says in its headers, and how it is answered.

A request is an event like any other, stored in its stream. Its headers name an inbox, in which one core NATS
message is the answer: it has no stream, so that an answer that nobody waits for costs nothing.
"""

from __future__ import annotations

import re
from functools import lru_cache

from understudy.actors import codec
from understudy.runtime.jetstream import headers
from understudy.runtime.jetstream.dead_letters import REPLAY_FOR
from understudy.runtime.jetstream.envelope import header_block, type_name

REPLY_TO = "Understudy-Reply-To"
CORRELATION_ID = "Understudy-Correlation-Id"
# Milliseconds since 1970.
DEADLINE = "Understudy-Deadline"
# Who waits for this answer, directly or not, and handles nothing meanwhile; and the subjects they answer.
ASKED_BY = "Understudy-Asked-By"
# In a reply that may have come before, since the answerer's connection broke.
REPEATED = "Understudy-Repeated"
# First in a reply: `answered`, or why there is no answer, which the body then says as text.
OUTCOME = "Understudy-Reply"
ANSWERED = "answered"
MAX_TEXT_BYTES = 4096
MAX_INBOX_LENGTH = 255
# Nowhere else: who may publish requests must not have an actor publish with its own permissions.
# Tokens of printable ASCII, without wildcards.
_INBOX = re.compile(r"_INBOX(\.[!-)+-\-/-=?-~]+)+")
_REPEATED_LINE = b"%b: 1\r\n" % REPEATED.encode()
_START = b"NATS/1.0\r\n%b: " % OUTCOME.encode()
# A dead letter's replay has the headers of its event, but whoever has asked is gone.
_REPLAY = b"NATS/1.0\r\n%b: " % REPLAY_FOR.encode()
_REPLY_TO, _CORRELATION_ID, _DEADLINE = REPLY_TO.encode(), CORRELATION_ID.encode(), DEADLINE.encode()
# Up to the year 5138, so that it is a date.
_DEADLINE_DIGITS = 14

# Subject, body and header block, as of events.
Reply = tuple[str, bytes, bytes]


def deadline_of(block: bytes) -> float | None:
    """Return until when the asker waits, in seconds since 1970; None if nobody does, or without end.

    Args:
        block: the request's headers.
    """
    if not block or block.startswith(_REPLAY):
        return None
    text = headers.find(block, _DEADLINE)
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= _DEADLINE_DIGITS):
        return None
    return int(text) / 1000


def is_reply(block: bytes) -> bool:
    """Return whether a message that is to go out is a reply, by its headers."""
    return block.startswith(_START)


def encode_answer(request: bytes, answer: object, *, as_json: bool) -> Reply | None:
    """Return the reply that answers a request; None if nobody waits for one.

    Args:
        request: its headers.
        answer: what the handler has returned.
        as_json: whether the asker writes JSON, and so may read no MessagePack.

    Raises:
        EncodeError: it can't be put on the wire.
    """
    inbox = _inbox_of(request)
    if not inbox:
        return None
    kind: type = type(answer)
    body = codec.encode_json(answer) if as_json else codec.encode(answer)
    return inbox, body, _with_correlation(_answer_start(kind, as_json), request)


def encode_refusal(request: bytes, reason: str, text: str) -> Reply | None:
    """Return the reply that says why there is no answer; None if nobody waits for one.

    Args:
        request: its headers.
        reason: one word.
        text: for people.
    """
    inbox = _inbox_of(request)
    if not inbox:
        return None
    body = text.encode(errors="backslashreplace")[:MAX_TEXT_BYTES]
    return inbox, body, _with_correlation(header_block({OUTCOME: reason})[:-2], request)


def repeated(reply: Reply, max_bytes: int) -> Reply:
    """Return a reply that says that it may have come before, if there is room for that.

    Args:
        reply: as it was encoded.
        max_bytes: of body and headers together.
    """
    inbox, body, block = reply
    if _REPEATED_LINE in block or len(body) + len(block) + len(_REPEATED_LINE) > max_bytes:
        return reply
    return inbox, body, block[:-2] + _REPEATED_LINE + b"\r\n"


def _inbox_of(request: bytes) -> str:
    """Return where the answer goes, empty if nobody waits for one, or not in an inbox."""
    if request.startswith(_REPLAY):
        return ""
    inbox = headers.find(request, _REPLY_TO)
    return inbox if inbox is not None and len(inbox) <= MAX_INBOX_LENGTH and _INBOX.fullmatch(inbox) else ""


@lru_cache(maxsize=256)
def _answer_start(kind: type, as_json: bool) -> bytes:
    described = {"Content-Type": codec.JSON if as_json else codec.MSGPACK, "ce-type": type_name(kind)}
    return header_block({OUTCOME: ANSWERED, **described})[:-2]


def _with_correlation(start: bytes, request: bytes) -> bytes:
    correlation = headers.find(request, _CORRELATION_ID)
    # It may have half a line break in it.
    if correlation is None or not (correlation.isascii() and correlation.isprintable()):
        return start + b"\r\n"
    return b"%b%b: %b\r\n\r\n" % (start, _CORRELATION_ID, correlation.encode())
