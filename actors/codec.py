"""Bodies: MessagePack on the wire, JSON read too.

Typed events decode straight into their type with msgspec; what has no type goes by the msgpack package, with
its limits set. Whatever is wrong with a body ends as a DecodeError with a short text.
"""

from typing import Any, Protocol, TypeAlias

import msgpack  # type: ignore[import-untyped]
import msgspec

from understudy.actors.errors import DecodeError, EncodeError

MSGPACK = "application/msgpack"
JSON = "application/json"

Body: TypeAlias = bytes | bytearray | memoryview


class Decoder(Protocol):
    """Decodes a body, by its content type if it has one; some look at its subject, too."""

    def __call__(self, data: Body, content_type: str | None, subject: str = "") -> Any:
        """Return the value; DecodeError if there is none."""


_MAX_ERROR_LENGTH = 300
_JSON_FIRST_BYTES = frozenset(b"{[")
_ASCII = 0x7F

# One packer for the process: it keeps its buffer, which halves the cost of an event. What it is given was
# made plain before, so packing runs no foreign code that could enter it twice.
_pack = msgpack.Packer(use_bin_type=True).pack
# Other values that MessagePack itself has no form for (dates, UUIDs, decimals, …) become text.
_KEPT = (bytes, bytearray, memoryview)
_decode_json = msgspec.json.Decoder().decode


def encode(value: object) -> bytes:
    """The MessagePack body of an event, dataclass, struct or plain value.

    Raises:
        EncodeError: it holds what has no form in MessagePack.
    """
    try:
        packed: bytes = _pack(msgspec.to_builtins(value, builtin_types=_KEPT))
    # A user's type can raise anything while it is taken apart.
    except Exception as error:
        raise EncodeError(
            _shorten(f"{type(value).__qualname__} can't be encoded: {_reason(error)}")
        ) from error
    return packed


def encode_json(value: object) -> bytes:
    """The JSON body of what `encode` takes.

    Raises:
        EncodeError: it holds what has no form in JSON.
    """
    try:
        return msgspec.json.encode(value)
    # As above.
    except Exception as error:
        raise EncodeError(
            _shorten(f"{type(value).__qualname__} can't be encoded: {_reason(error)}")
        ) from error


def decoder(type_: Any) -> Decoder:
    """Makes the function that decodes bodies into `type_`, and raises DecodeError for others.

    Raises:
        TypeError, NameError: msgspec can't decode into it.
    """
    from_msgpack = msgspec.msgpack.Decoder(type_).decode
    from_json = msgspec.json.Decoder(type_).decode
    name = getattr(type_, "__qualname__", str(type_))

    def decode(data: Body, content_type: str | None, subject: str = "") -> Any:  # noqa: ARG001
        try:
            # The common cases are settled by a comparison: a MessagePack map begins above all of JSON.
            if content_type == MSGPACK or (content_type is None and data and data[0] > _ASCII):
                return from_msgpack(data)
            if not is_json(data, content_type):
                return from_msgpack(data)
            return from_json(data)
        # A field type's own checks can raise anything; a body nested too deeply is a RecursionError.
        except Exception as error:
            raise DecodeError(_shorten(f"{name}: {_reason(error, data)}")) from error

    return decode


def decode_untyped(data: Body, content_type: str | None, subject: str = "") -> Any:  # noqa: ARG001
    """The plain value of a body: dict, list, str, bytes, int, float, bool, None, datetime.

    Raises:
        DecodeError: it is neither JSON nor MessagePack, whichever it says it is.
    """
    try:
        if is_json(data, content_type):
            return _decode_json(data)
        size = len(data)
        return msgpack.unpackb(
            data,
            strict_map_key=False,
            timestamp=3,
            ext_hook=_refuse_extension,
            # A length prefix can't make it reserve more than the body could hold.
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=size // 2,
            max_ext_len=size,
        )
    except Exception as error:
        raise DecodeError(_shorten(f"body: {_reason(error, data)}")) from error


def is_json(data: Body, content_type: str | None) -> bool:
    """Whether a body is JSON; DecodeError if its content type is neither that nor MessagePack."""
    if content_type is None:
        return len(data) > 0 and data[0] in _JSON_FIRST_BYTES
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == JSON:
        return True
    if media_type == MSGPACK:
        return False
    raise DecodeError(f"content type {media_type[:80]!r} is not read; send {MSGPACK} or {JSON}")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise DecodeError(f"MessagePack extension type {code} ({len(data)} bytes) is not read")


def _reason(error: Exception, data: Body | None = None) -> str:
    if data is not None and len(data) == 0:
        return "the body is empty"
    if isinstance(error, RecursionError | msgpack.exceptions.StackError):
        return "nested too deeply"
    if isinstance(error, msgpack.exceptions.FormatError):
        return "MessagePack is malformed"
    return str(error) or type(error).__name__


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_ERROR_LENGTH else text[: _MAX_ERROR_LENGTH - 3] + "..."
