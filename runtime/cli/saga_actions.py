"""What the saga commands do over a connection of their own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors.errors import ConfigurationError, StateError
from understudy.actors.saga import SagaRecord, Signal
from understudy.actors.saga_position import ENDED, Phase
from understudy.runtime.cell.state import stored_value
from understudy.runtime.cli.letter_views import age, fit_rows, readable
from understudy.runtime.jetstream.connection import Connection, close, connect
from understudy.runtime.jetstream.saga_log import SagaConsumer, find_sagas, read_state, read_states, tell
from understudy.runtime.stores.state import name_of

if TYPE_CHECKING:
    from understudy.config.connection import ConnectionSpec

_TITLES = ("ID", "SAGA", "STATE", "STEP", "AGE", "WHY")
_WIDEST = (32, 24, 12, 24, 6, 0)
_decode = msgspec.msgpack.Decoder(SagaRecord).decode


class StoredSaga(msgspec.Struct, frozen=True, kw_only=True):
    """A saga, and whose it is."""

    consumer: SagaConsumer
    record: SagaRecord

    @property
    def changed_at(self) -> int:
        """When it last moved, in nanoseconds since 1970."""
        return round(self.record.changed_at * 1_000_000_000)

    @property
    def why(self) -> str:
        """Why it compensates, and why it is stuck or was abandoned."""
        position = self.record.position
        return "; ".join(filter(None, (position.problem, position.error)))

    @property
    def to_undo(self) -> list[str]:
        """The steps that are done, or may be, and can still be undone, the next first; none of a good end."""
        position = self.record.position
        if position.phase in (Phase.COMPLETED, Phase.COMPENSATED):
            return []
        return list(reversed(position.undo))


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of the sagas that are meant.

    Args:
        sagas: the one that moved last first.
        unread: why what is stored of others can't be read.
    """

    sagas: list[StoredSaga]
    unread: list[str]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which sagas are meant.

    Args:
        app: whose; None for all apps'.
        saga: of which name; empty for any.
        phase: in which state; empty for any.
        since, before: when they last moved, in nanoseconds since 1970; None for any time.
    """

    app: str | None
    saga: str = ""
    phase: str = ""
    since: int | None = None
    before: int | None = None

    def fits(self, saga: StoredSaga) -> bool:
        """Return whether one of the app and name is meant."""
        return (
            saga.record.position.phase == (self.phase or saga.record.position.phase)
            and (self.since is None or saga.changed_at >= self.since)
            and (self.before is None or saga.changed_at < self.before)
        )


async def find(spec: ConnectionSpec, choice: Choice) -> Found:
    """Return the sagas that are meant."""
    async with _connected(spec) as client:
        return await _find(client, choice)


async def names(spec: ConnectionSpec) -> list[str]:
    """Return which sagas there are, and whose: "rebooking of flights"."""
    async with _connected(spec) as client:
        return [f"{one.saga} of {one.app}" for one in await find_sagas(client)]


async def find_one(spec: ConnectionSpec, choice: Choice, number: str) -> StoredSaga | None:
    """Return a saga by its id; None if there is none.

    Raises:
        ConfigurationError: there are several of that id.
        StateError: what is stored of it can't be read.
    """
    async with _connected(spec) as client:
        return await _find_one(client, choice, number)


async def find_active(
    spec: ConnectionSpec, choice: Choice, ids: list[str]
) -> tuple[list[StoredSaga], list[str]]:
    """Return the sagas that can be told something: those of some ids, or with none all that are meant.

    Returns:
        They, and why others can't.
    """
    problems: list[str] = []
    sagas: list[StoredSaga] = []
    async with _connected(spec) as client:
        if not ids:
            found = await _find(client, choice)
            sagas, problems = found.sagas, found.unread
        for number in dict.fromkeys(ids):
            saga = await _find_one(client, choice, number)
            if saga is None:
                problems.append(missing(choice, number))
            elif saga.record.position.phase in ENDED:
                problems.append(f"saga {number!r} has ended: {saga.record.position.phase}")
            else:
                sagas.append(saga)
    return sagas, problems


async def tell_all(spec: ConnectionSpec, sagas: list[StoredSaga], kind: str, reason: str = "") -> None:
    """Tell sagas something; one that has ended meanwhile takes no notice."""
    async with _connected(spec) as client:
        for saga in sagas:
            await tell(client, saga.consumer, Signal(saga=saga.record.id, kind=kind, reason=reason))


def missing(choice: Choice, number: str) -> str:
    """Say that there is no saga of an id, and among whose it was looked for."""
    among = given({"--app": choice.app, "--saga": choice.saga})
    return f"there is no saga {number!r}{f' with {among}' if among else ''}"


def given(options: Mapping[str, str | None]) -> str:
    """Return the options that were given, as they are typed."""
    return " ".join(f"{option} {value}" for option, value in options.items() if value)


def summary(saga: StoredSaga) -> dict[str, Any]:
    """Return a saga without its state, as plain values."""
    record, position = saga.record, saga.record.position
    return {
        "id": record.id,
        "app": saga.consumer.app,
        "saga": saga.consumer.saga,
        "state": position.phase,
        "step": position.step,
        "direction": position.direction,
        "waiting": position.waiting,
        "to_undo": saga.to_undo,
        "error": position.error,
        "problem": position.problem,
        "started": _time(record.started_at),
        "changed": _time(record.changed_at),
        "turn": position.turn,
    }


def whole(saga: StoredSaga) -> dict[str, Any]:
    """Return all of a saga, as plain values."""
    return {
        **summary(saga),
        "data": msgspec.to_builtins(msgspec.msgpack.decode(saga.record.state)),
        "stream": saga.consumer.stream,
        "durable": saga.consumer.durable,
    }


def describe(saga: StoredSaga) -> str:
    """Return all of a saga for people."""
    record, position = saga.record, saga.record.position
    step = f"{position.step} ({position.direction}{', waits for a reply' if position.waiting else ''})"
    facts = {
        "state": position.phase,
        "step": step if position.step else "",
        "to undo": ", ".join(saga.to_undo),
        "error": position.error,
        "problem": position.problem,
        "started": f"{_time(record.started_at)}, {age(round(record.started_at * 1e9))} ago",
        "changed": f"{_time(record.changed_at)}, {age(saga.changed_at)} ago",
        "read by": f"consumer {saga.consumer.durable} of stream {saga.consumer.stream}",
    }
    lines = [f"saga {readable(record.id)}, {saga.consumer.saga} of {saga.consumer.app}"]
    lines += [f"  {name:8} {readable(value)}" for name, value in facts.items() if value]
    data = msgspec.json.format(msgspec.json.encode(whole(saga)["data"]), indent=2).decode()
    return "\n".join([*lines, "data", *(f"  {readable(line)}" for line in data.splitlines())])


def table(sagas: list[StoredSaga], *, columns: int) -> str:
    """Return sagas as a table, a line each, of a width in characters."""
    rows: list[tuple[str, ...]] = [_TITLES]
    for saga in sagas:
        position = saga.record.position
        cells = (
            saga.record.id, saga.consumer.saga, position.phase, position.step, age(saga.changed_at), saga.why,
        )  # fmt: skip
        rows.append(tuple(map(readable, cells)))
    return fit_rows(rows, _WIDEST, columns=columns)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


async def _find(client: Connection, choice: Choice) -> Found:
    sagas, unread = [], []
    for consumer in await find_sagas(client, choice.app, choice.saga):
        for key, body in (await read_states(client, consumer)).items():
            try:
                saga = StoredSaga(consumer=consumer, record=_read(key, body))
            except StateError as error:
                unread.append(str(error))
                continue
            if choice.fits(saga):
                sagas.append(saga)
    return Found(sagas=sorted(sagas, key=lambda saga: saga.changed_at, reverse=True), unread=unread)


def _read(key: str, body: bytes) -> SagaRecord:
    try:
        return _decode(stored_value(body))
    except (StateError, msgspec.MsgspecError) as error:
        raise StateError(f"the saga under {key} can't be read: {error}") from error


async def _find_one(client: Connection, choice: Choice, number: str) -> StoredSaga | None:
    found = []
    for consumer in await find_sagas(client, choice.app, choice.saga):
        name = name_of(number)
        body = await read_state(client, consumer, name)
        if body is not None:
            found.append(StoredSaga(consumer=consumer, record=_read(f"{consumer.durable}.{name}", body)))
    if len(found) > 1:
        several = ", ".join(f"{one.consumer.saga} of {one.consumer.app}" for one in found)
        raise ConfigurationError(f"several sagas have the id {number!r}: {several}; give --saga or --app")
    return found[0] if found else None


@contextlib.asynccontextmanager
async def _connected(spec: ConnectionSpec) -> AsyncIterator[Connection]:
    client = await connect(spec, name="understudy sagas")
    try:
        yield client
    finally:
        await close(client)
