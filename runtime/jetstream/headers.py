"""A message's headers as the bytes that were on the wire, read only as far as somebody asks.

Format: ADR-4. Parsing a header block costs more than everything else that is done with most deliveries.
"""

from __future__ import annotations

from collections.abc import Mapping

_VERSION = b"NATS/1.0"
_LINE_END = b"\r\n"


def encode(headers: Mapping[str, str], status: str = "") -> bytes:
    """Return the block of some headers, empty for none.

    Args:
        headers: names and values without line breaks.
        status: code and description for the first line.
    """
    if not (headers or status):
        return b""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    first = f"NATS/1.0 {status}".rstrip()
    return f"{first}\r\n{lines}\r\n".encode(errors="surrogateescape")


def parse(block: bytes) -> dict[str, str]:
    """Return all headers of a block; of a name that is repeated, the first.

    What isn't UTF-8 keeps its bytes as surrogate escapes, so that it can be published again as it was.

    Args:
        block: from the version line to the empty line; empty for no headers.
    """
    headers: dict[str, str] = {}
    for line in block.decode(errors="surrogateescape").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name, value.strip())
    return headers


def find(block: bytes, name: bytes) -> str | None:
    """Return one header of a block, or None, without reading the others.

    Args:
        block: as of `parse`.
        name: spelled as on the wire, which is case-sensitive.
    """
    start = block.find(b"\r\n%b:" % name)
    if start < 0:
        return None
    start += len(name) + 3
    return block[start : block.find(_LINE_END, start)].decode(errors="surrogateescape").strip()


def status(block: bytes) -> tuple[str, str]:
    """Return the status code and description of a block's first line, both empty if it has none.

    Args:
        block: of a status frame, such as `NATS/1.0 408 Request Timeout`.
    """
    line = block[len(_VERSION) : block.find(_LINE_END)].decode(errors="surrogateescape").strip()
    code, _, description = line.partition(" ")
    return code, description.strip()
