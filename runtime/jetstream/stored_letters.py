"""A dead letter as its stream holds it, and what of it was the original's."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property

import msgspec

from understudy.runtime.jetstream.dead_letters import RENAMED

_OURS = frozenset(
    f"Understudy-{name}"
    for name in (
        "Reason", "Error", "Stream", "Subject", "Sequence", "Attempts", "Actor", "Durable", "Time",
        "Trace-Id", "Headers-Left-Out", "Body-Left-Out",
    )
)  # fmt: skip


class StoredLetter(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A dead letter.

    Args:
        id: its sequence in the dead-letter stream.
        app: whose it is.
        actor: who gave it up.
        stored_at: when, in nanoseconds since 1970, by the server's clock.
        headers: all of its headers, by the names that they have in the letter.
        body: what it holds of the original's body; None if that wasn't read.
        size: of the body, in bytes.
    """

    id: int
    app: str
    actor: str
    stored_at: int
    headers: Mapping[str, str]
    body: bytes | None
    size: int

    @property
    def time(self) -> datetime:
        """When it was given up."""
        return datetime.fromtimestamp(self.stored_at / 1_000_000_000, UTC)

    @property
    def durable(self) -> str:
        """The consumer of whoever gave it up; letters of earlier versions don't say it."""
        return self._said("Durable") or f"{self.app}-{self.actor}"

    @property
    def reason(self) -> str:
        """Why it was given up: `undecodable`, `rejected`, `exhausted` or `crashed`."""
        return self._said("Reason")

    @property
    def error(self) -> str:
        """The last failure's text."""
        return self._said("Error")

    @property
    def attempts(self) -> int:
        """How many runs of the handler failed."""
        return self._number("Attempts")

    @property
    def trace_id(self) -> str:
        """The trace that it belongs to."""
        return self._said("Trace-Id")

    @property
    def stream(self) -> str:
        """Where the original was stored; empty if this is no dead letter."""
        return self._said("Stream")

    @property
    def stream_created(self) -> str:
        """When that stream was made, as the server says it; empty if that isn't known."""
        # The letter's id is durable, creation time and sequence; a durable has no dot.
        _, _, rest = self.headers.get("Nats-Msg-Id", "").partition(".")
        return rest.rpartition(".")[0]

    @property
    def subject(self) -> str:
        """Where the original was published; empty if this is no dead letter."""
        return self._said("Subject")

    @property
    def sequence(self) -> int:
        """The original's place in its stream."""
        return self._number("Sequence")

    @property
    def is_body_left_out(self) -> bool:
        """Whether the original's body was too large to be kept beside our headers."""
        return "Understudy-Body-Left-Out" in self.headers

    @property
    def headers_left_out(self) -> tuple[str, ...]:
        """The original's headers that were not kept."""
        return tuple(filter(None, self._said("Headers-Left-Out").split(", ")))

    @cached_property
    def original_headers(self) -> dict[str, str]:
        """The original's headers by their own names, those that had a meaning for the server included."""
        found = {}
        for name, value in self.headers.items():
            own = name.removeprefix(RENAMED)
            is_renamed = own != name and own.lower().startswith("nats-")
            if is_renamed or not (name in _OURS or name.lower().startswith("nats-")):
                found[own if is_renamed else name] = value
        return found

    def _said(self, name: str) -> str:
        return self.headers.get(f"Understudy-{name}", "")

    def _number(self, name: str) -> int:
        text = self._said(name)
        return int(text) if text.isascii() and text.isdigit() else 0


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters are meant: those that all of it fits.

    Args:
        actor: by whom they were given up; empty for any.
        reason: why; empty for any.
        since, before: when, in nanoseconds since 1970; None for any time.
        last: the highest id; None for any.
    """

    actor: str = ""
    reason: str = ""
    since: int | None = None
    before: int | None = None
    last: int | None = None

    @property
    def is_everything(self) -> bool:
        """Whether it fits every letter."""
        return self == Selection()
