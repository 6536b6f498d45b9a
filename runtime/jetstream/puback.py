"""What a stream answers to a publish: that it has the message and where, or why it hasn't."""

from __future__ import annotations

import msgspec


class PubAck(msgspec.Struct, frozen=True):
    """A stream's word that it has a message.

    Args:
        stream: its name.
        seq: the message's sequence in it.
        duplicate: whether it had a message of this id already, so that nothing was stored.
    """

    stream: str
    seq: int
    duplicate: bool = False


class Refused(Exception):
    """A stream refused the message, or its answer can't be read.

    Attributes:
        code: the server's error code, None if it gave none.
    """

    def __init__(self, problem: str, code: int | None = None) -> None:
        super().__init__(problem)
        self.code = code


class _Error(msgspec.Struct, frozen=True):
    err_code: int | None = None
    description: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    error: _Error | None = None


_decode_ack = msgspec.json.Decoder(PubAck).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


def read_answer(body: bytes) -> PubAck:
    """Return what a stream confirms.

    Args:
        body: of the message on the reply subject.

    Raises:
        Refused: it confirms nothing.
    """
    try:
        # A stream may be called "error", too.
        error = _decode_refusal(body).error if b'"error"' in body else None
        if error is None:
            return _decode_ack(body)
    except msgspec.MsgspecError as unreadable:
        raise Refused(f"the answer can't be read: {unreadable}") from unreadable
    raise Refused(f"the stream refused it: {error.description}", error.err_code)
