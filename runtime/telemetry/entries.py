"""From what was logged to an entry: its fields, without secrets and without too many repeats."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Protocol

from structlog.typing import EventDict, WrappedLogger

from understudy.runtime.telemetry.redaction import Redaction, shown
from understudy.runtime.telemetry.repeats import Kind, Repeats, Suppressed, details_of
from understudy.runtime.telemetry.trace import current_trace

Entry = dict[str, Any]


class Batch(Protocol):
    """Deliveries that are handled together."""

    @property
    def log_fields(self) -> Mapping[str, object]:
        """What entries say of them."""


current_batch: ContextVar[Batch | None] = ContextVar("current_batch", default=None)
"""The deliveries that the current task handles together; None if it does no such thing."""

# What an entry says of the delivery that is handled.
OF_A_DELIVERY = ("trace_id", "span_id", "stream", "sequence", "subject", "attempt")
# What a batch's entry has instead of a sequence, and what else belongs to single events.
OF_A_BATCH = ("deliveries", "first_sequence", "last_sequence")
# What an entry says of the process; a supervisor's entry may name another cell.
OF_A_PROCESS = ("app", "node", "supervisor", "actor", "cell", "child")
# What every entry has, and nobody else may say.
_OWN = frozenset({"time", "level", "event", "logger", "pid", "exception", "stack"})
# Where what went wrong stands in words.
_ERROR = ("error", "reason")
# uvicorn says everything twice, and Thespian who sent it.
_UNWANTED = ("color_message", "actorAddress")
_OF_A_RECORD = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", *_UNWANTED))


class _Fields(dict[str, Any]):
    """A record's message that structlog has made."""


def to_record(_logger: WrappedLogger, _method: str, fields: EventDict) -> tuple[tuple[Entry], dict[str, Any]]:
    """Hand structlog's fields to the standard library; the last of structlog's processors."""
    options = {name: fields.pop(name) for name in ("exc_info", "stack_info") if name in fields}
    return (_Fields(fields),), options


class EntryHandler(logging.Handler):
    """Makes an entry of each record, and never raises for what is in it.

    Args:
        context: what every entry of this process names.
        redaction: keeps secrets out of it.
        repeats: says which warnings and errors are written.
        write: takes each entry; must not raise.

    Attributes:
        redaction: as given.
    """

    def __init__(
        self,
        *,
        context: Mapping[str, object],
        redaction: Redaction,
        repeats: Repeats,
        write: Callable[[Entry], None],
    ) -> None:
        super().__init__()
        self._context = dict(context)
        self.redaction = redaction
        self._repeats = repeats
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's entry, unless it repeats what was written."""
        self._write_suppressed()
        try:
            event, fields = _told(record)
            if record.levelno >= logging.WARNING and not self._admit(record, event, fields):
                return
            entry = self._entry(record, event, fields)
        except Exception as problem:  # noqa: BLE001 - what is logged may be of a user's class, and raise anything
            entry = self._unshowable(record, problem)
            kind = Kind(record.name, record.levelno, entry["event"], entry["log_failure"], ())
            if not self._repeats.admit(kind, ()):
                return
        self._write(entry)

    def flush_suppressed(self, *, all_of_them: bool = False) -> None:
        """Write what was suppressed in windows that have ended; call it now and again, from any thread.

        Args:
            all_of_them: those that have not ended too.
        """
        self.acquire()
        try:
            self._write_suppressed(all_of_them=all_of_them)
        finally:
            self.release()

    def close(self) -> None:
        """Write what was suppressed; called at the interpreter's end."""
        self.flush_suppressed(all_of_them=True)
        super().close()

    def _admit(self, record: logging.LogRecord, event: str, fields: Mapping[str, Any]) -> bool:
        # A process speaks for others too: so do supervisors.
        who = tuple((name, shown(fields[name])) for name in OF_A_PROCESS if name in fields)
        kind = Kind(record.name, record.levelno, event, _error(record, fields), who)
        return self._repeats.admit(kind, details_of(dict(_without_delivery(fields))))

    def _entry(self, record: logging.LogRecord, event: str, fields: MutableMapping[str, Any]) -> Entry:
        for name, value in {**self._context, **_handled()}.items():
            fields.setdefault(name, value)
        if fields.get("error") is None and (error := _failure(record)):
            fields["error"] = error
        plain = self.redaction.fields(fields)
        entry = self._head(record, self.redaction.text(event))
        for name in (*OF_A_PROCESS, *OF_A_DELIVERY):
            if name in plain:
                entry[name] = plain.pop(name)
        for name, value in plain.items():
            entry[f"{name}_" if name in _OWN else name] = value
        entry["logger"], entry["pid"] = record.name, record.process
        if failure := _exception(record):
            entry["exception"] = self.redaction.text(failure)
        if record.stack_info:
            entry["stack"] = self.redaction.text(record.stack_info)
        return entry

    def _unshowable(self, record: logging.LogRecord, problem: BaseException) -> Entry:
        try:
            event = self.redaction.text(shown(record.msg))
            reason = self.redaction.text(f"{type(problem).__qualname__}: {shown(problem)}")
        except Exception:  # noqa: BLE001 - nothing of it can be used
            event, reason = "an entry that can't be shown", type(problem).__qualname__
        return {
            **self._head(record, event),
            **self._context,
            **_handled(),
            "logger": record.name,
            "pid": record.process,
            "log_failure": reason,
        }

    def _head(self, record: logging.LogRecord, event: str) -> Entry:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": event,
        }

    def _write_suppressed(self, *, all_of_them: bool = False) -> None:
        for suppressed in self._repeats.take_ended(all_of_them=all_of_them):
            self._write(self._summary(suppressed))

    def _summary(self, suppressed: Suppressed) -> Entry:
        kind = suppressed.kind
        fields: dict[str, object] = {"suppressed": kind.event, "count": suppressed.entries}
        fields["seconds"] = round(suppressed.seconds, 1)
        if not suppressed.are_alike:
            fields["various"] = True
        if kind.error:
            fields["error"] = kind.error
        record = logging.makeLogRecord(
            {"name": kind.logger, "levelno": kind.level, "levelname": logging.getLevelName(kind.level)}
        )
        head = self._head(record, "repeats were not logged")
        of_process = self.redaction.fields({**self._context, **dict(kind.who)})
        return {
            **head,
            **of_process,
            **self.redaction.fields(fields),
            "logger": kind.logger,
            "pid": record.process,
        }


def _told(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """Return what a record says, and its fields."""
    if isinstance(record.msg, _Fields):
        fields = dict(record.msg)
        event = fields.pop("event", "")
        return (event if isinstance(event, str) else shown(event)), fields
    extra = {name: value for name, value in vars(record).items() if name not in _OF_A_RECORD}
    event = record.getMessage()
    if record.name == "asyncio":
        # What differs each time, such as the task, comes in further lines.
        event, _, details = event.partition("\n")
        return event, ({"details": details, **extra} if details else extra)
    return event, extra


def _handled() -> Mapping[str, object]:
    """Return what names the delivery, or the batch, that the current task handles."""
    batch, current = current_batch.get(), current_trace.get()
    fields = {} if batch is None else dict(batch.log_fields)
    if current is not None:
        # What made the trace may know more than its ids: a delivery does.
        known = getattr(current, "log_fields", None)
        fields |= known or {"trace_id": current.trace_id, "span_id": current.span_id}
    return fields


def _without_delivery(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    left_out = {*OF_A_DELIVERY, *OF_A_BATCH, *OF_A_PROCESS, *_ERROR}
    return ((name, value) for name, value in fields.items() if name not in left_out)


def _error(record: logging.LogRecord, fields: Mapping[str, Any]) -> str:
    """Return what went wrong, in words."""
    texts = [shown(fields[name]) for name in _ERROR if fields.get(name) is not None]
    if failure := _failure(record):
        texts.append(failure)
    # Many entries name their exception, or its text, in a field too.
    return "; ".join(
        text for text in dict.fromkeys(texts) if not any(other.endswith(f": {text}") for other in texts)
    )


def _failure(record: logging.LogRecord) -> str:
    """Return the type and the text of a record's exception."""
    failure = record.exc_info[1] if record.exc_info else None
    if failure is None:
        # Thespian's processes send theirs as text.
        return (record.exc_text or "").rpartition("\n")[2]
    name, text = type(failure).__name__, shown(failure)
    return f"{name}: {text}" if text else name


def _exception(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[1] is not None:
        return "".join(traceback.format_exception(*record.exc_info)).rstrip()
    return record.exc_text or ""
