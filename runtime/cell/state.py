"""What a cell has of its actor's states: those in use, and a bounded cache of the others.

A state is stored with what makes a commit the one moment at which a delivery is handled: which sequences it
holds, and what their handlers have published that may not be out yet.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import msgspec
import structlog

from understudy.actors.errors import BrokerError, StateError
from understudy.actors.state import StateCodec
from understudy.runtime.cell.applied import Applied, Block, Stored
from understudy.runtime.cell.epochs import Epochs
from understudy.runtime.stores.state import Ack, Conflict, StateStore, revision_of

CACHE_ENTRIES = 16_384
CACHE_BYTES = 32 * 1024 * 1024
# Of the stored form, whatever version the value has. A record of another one is left alone, and its events
# wait: raise it with each change of `_Record`.
FORMAT = 2
# What is stored beside value, outputs and sequences: headers, lengths, creation time.
_OVERHEAD_BYTES = 512
# Of the parts of a message and of the message.
_LENGTHS = 16
_log = structlog.get_logger("understudy.state")

# Subject, body and header block.
Message = tuple[str, bytes, bytes]


class _Record(msgspec.Struct, array_like=True, frozen=True):
    """A state as it is stored.

    Args:
        format: of this record.
        version: of the value's class.
        stream_created: of which stream the sequences are.
        applied: the sequences that the value holds, as far as they may come again.
        unsent: by sequence, what its handler published and nobody is known to have.
        unmarked: by sequence, the name of the mark that an idempotent actor has to make.
        value: the fields.
    """

    format: int
    version: int
    stream_created: str
    applied: list[Stored]
    unsent: list[tuple[int, list[Message]]]
    unmarked: list[tuple[int, str]]
    value: msgspec.Raw


class _Form(msgspec.Struct, array_like=True, frozen=True):
    """What records of all forms begin with."""

    format: int


_encode = msgspec.msgpack.Encoder().encode
_decode_form = msgspec.msgpack.Decoder(_Form).decode
_decode_record = msgspec.msgpack.Decoder(_Record).decode


def _decode(body: bytes) -> _Record:
    """Return what is stored.

    Raises:
        StateError: another version has stored it, or something else.
    """
    try:
        form = _decode_form(body).format
        if form == FORMAT:
            return _decode_record(body)
    except msgspec.MsgspecError as error:
        raise StateError(f"it is nothing that understudy stores ({error})") from error
    raise StateError(
        f"it is stored in form {form} and this version of understudy reads form {FORMAT}; run the version "
        f"that stored it"
    )


def stored_value(body: bytes) -> bytes:
    """Return the value of what is stored, as its class's version has encoded it.

    Raises:
        StateError: it is nothing that this version stores.
    """
    try:
        return bytes(_decode(body).value)
    except StateError as error:
        raise StateError(f"what is stored can't be read: {error}") from error


class HeldState:
    """One state in the cell.

    Attributes:
        name: its key's.
        revision: of what was read or stored last.
        read_at: when it was read, by the event loop's clock.
        value: what the next handler is given.
        applied: the sequences that it holds.
        unsent: by sequence, what its handler published and isn't confirmed.
        unmarked: by sequence, the name of its mark that isn't made.
        changes_seen: how far its sequences were looked through for those that are safe.
        size: bytes of the stored form, about.
    """

    __slots__ = (
        *("_codec", "_data", "_version"),
        *("applied", "changes_seen", "generation", "name", "read_at"),
        *("revision", "unmarked", "unsent", "value"),
    )

    def __init__(self, name: str, codec: StateCodec, revision: int, generation: int) -> None:
        self.name = name
        self.revision = revision
        self.generation = generation
        self.changes_seen = -1
        self.read_at = 0.0
        self.applied = Applied()
        self.unsent: dict[int, Sequence[Message]] = {}
        self.unmarked: dict[int, str] = {}
        self._codec = codec
        self._data, self.value = codec.encode(codec.type())
        self._version = codec.version

    def read(self, data: bytes, version: int) -> None:
        """Take the value from what some version has stored.

        Raises:
            StateError: it can't be read.
        """
        self.value = self._codec.decode(data, version)
        self._data, self._version = data, version

    def apply(self, sequence: int, messages: Sequence[Message], max_payload: int, *, mark: str = "") -> None:
        """Take what a handler has made of the value.

        Args:
            sequence: of its delivery.
            messages: what it has published.
            max_payload: how many bytes the server takes.
            mark: the name of its mark, empty if it has none.

        Raises:
            StateError: it can't be stored, or not together with that.
        """
        data, value = self._codec.encode(self.value)
        size = len(data) + _OVERHEAD_BYTES
        if messages or self.unsent:
            size += _size_of(messages) + self._unsent_bytes()
        if self.unmarked:
            size += sum(len(name) + _LENGTHS for name in self.unmarked.values())
        # Counting them is only worth while where they might be too many.
        applied = self.applied
        if size + applied.most_bytes > max_payload:
            size += len(_encode(applied.encode()))
        if size > max_payload:
            raise StateError(
                f"the state of {self.name!r} and what is published with it take {size} bytes, the server "
                f"takes {max_payload}; publish less at once, keep less, or raise the server's max_payload"
            )
        self._data, self.value = data, value
        self._version = self._codec.version
        self.applied.add(sequence)
        if messages:
            self.unsent[sequence] = messages
        if mark:
            self.unmarked[sequence] = mark

    def undo(self) -> None:
        """Drop what a handler has changed in the value since the last `apply`."""
        self.value = self._codec.decode(self._data, self._version)

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return len(self._data)

    def has_room(self, max_payload: int) -> bool:
        """Return whether more deliveries may share the next commit."""
        return 4 * (len(self._data) + self._unsent_bytes()) < max_payload

    def _unsent_bytes(self) -> int:
        return sum(map(_size_of, self.unsent.values())) if self.unsent else 0

    def encode(self, stream_created: str) -> bytes:
        """Return what is to be stored."""
        return _encode(
            _Record(
                FORMAT,
                self._version,
                stream_created,
                self.applied.encode(),
                [(sequence, list(messages)) for sequence, messages in self.unsent.items()]
                if self.unsent
                else [],
                list(self.unmarked.items()) if self.unmarked else [],
                msgspec.Raw(self._data),
            )
        )


def _size_of(messages: Sequence[Message]) -> int:
    return sum(len(subject) + len(body) + len(block) + _LENGTHS for subject, body, block in messages)


class States:
    """The states of one cell's actor.

    A state in use is in nobody else's hands; whoever doesn't give it back has it read anew.

    Args:
        store: where they are.
        codec: of their class.
        stream_created: of the stream whose sequences they hold.
        floor: the consumer's ack floor.
        holds_any: whether the mailbox has a delivery of one of some sequences.
    """

    def __init__(
        self,
        store: StateStore,
        codec: StateCodec,
        *,
        stream_created: str,
        floor: int,
        holds_any: Callable[[Iterable[int]], bool],
    ) -> None:
        self.epochs = Epochs(floor)
        self._store = store
        self._codec = codec
        self._stream_created = stream_created
        self._holds_any = holds_any
        self._cache: OrderedDict[str, HeldState] = OrderedDict()
        self._bytes = 0
        self._generation = 0
        self._conflicts: set[str] = set()
        # Why the last one wasn't. Apart, since a full disk is still read.
        self._unread = self._unstored = ""

    @property
    def away(self) -> str:
        """Why states can't be read or stored, as far as the last try has shown; empty if they can."""
        return self._unread or self._unstored

    async def take(self, name: str) -> HeldState:
        """Return a state, to be used alone until it is given back or dropped.

        Args:
            name: its key's.

        Raises:
            BrokerError: it can't be read now.
            StateError: it can't be read by this code.
        """
        state = self.cached(name)
        if state is not None:
            return state
        generation = self._generation
        try:
            stored = await self._store.load(name, from_leader=name in self._conflicts)
        except BrokerError as error:
            self._unread = str(error)
            raise
        self._unread = ""
        state = HeldState(name, self._codec, stored.revision, generation)
        if stored.body is not None:
            self._read(state, stored.body)
        state.read_at = asyncio.get_running_loop().time()
        state.changes_seen = self.epochs.changes
        self._drop(state)
        return state

    def cached(self, name: str) -> HeldState | None:
        """Return a state as `take` does, if it is here."""
        state = self._cache.pop(name, None)
        if state is None:
            return None
        self._bytes -= state.size
        state.applied.begin(self.epochs.now)
        if state.changes_seen != self.epochs.changes:
            state.changes_seen = self.epochs.changes
            self._drop(state)
        return state

    def give_back(self, state: HeldState) -> None:
        """Keep a state for the next delivery of its key; all that it holds is settled or tried again."""
        state.applied.settled(self.epochs.now)
        self.epochs.is_used = True
        if state.generation != self._generation:
            return
        self._cache[state.name] = state
        self._bytes += state.size
        while len(self._cache) > CACHE_ENTRIES or self._bytes > CACHE_BYTES:
            _, oldest = self._cache.popitem(last=False)
            self._bytes -= oldest.size

    def forget(self) -> None:
        """Drop all, and what is in use when it is given back: another cell may change them from now on."""
        self._generation += 1
        self._cache.clear()
        self._bytes = 0

    def commit(self, state: HeldState) -> asyncio.Future[Ack]:
        """Have a state stored; returns what is for `committed`, when it is done.

        Raises:
            BrokerError: it can't be written, and is to be dropped.
        """
        try:
            return self._store.commit(state.name, state.revision, state.encode(self._stream_created))
        except BrokerError as error:
            self._unstored = str(error)
            raise

    def committed(self, state: HeldState, answer: asyncio.Future[Ack]) -> None:
        """Hear how a commit ended.

        Raises:
            Conflict: another cell has changed it, or we have and don't know; it is to be dropped.
            BrokerError: it wasn't confirmed, and is to be dropped.
        """
        try:
            state.revision = revision_of(answer)
        except Conflict:
            # Which only the leader is sure to know.
            self._conflicts.add(state.name)
            raise
        except BrokerError as error:
            self._unstored = str(error)
            raise
        self._unstored = ""
        if self._conflicts:
            self._conflicts.discard(state.name)

    def _drop(self, state: HeldState) -> None:
        """Take out what the server won't deliver again."""
        state.applied.drop(lambda block: self._is_over(state, block))
        if state.unsent:
            floor = self.epochs.floor
            state.unsent = {one: some for one, some in state.unsent.items() if one > floor}
        if state.unmarked:
            floor = self.epochs.floor
            state.unmarked = {one: name for one, name in state.unmarked.items() if one > floor}

    def _is_over(self, state: HeldState, block: Block) -> bool:
        # What was published may have been refused, and the delivery given back.
        if block.sequences[-1] > self.epochs.floor and (
            not self.epochs.is_over(block) or not state.unsent.keys().isdisjoint(block.sequences)
        ):
            return False
        # A copy that the server had sent before it knew of the ack may still wait here.
        return not self._holds_any(block.sequences)

    def _read(self, state: HeldState, body: bytes) -> None:
        try:
            record = _decode(body)
            state.read(bytes(record.value), record.version)
            if record.stream_created == self._stream_created:
                state.applied = Applied(record.applied)
                state.unsent = {
                    sequence: messages for sequence, messages in record.unsent if sequence in state.applied
                }
                state.unmarked = dict(record.unmarked)
        except (StateError, ValueError) as error:
            bucket, key = self._store.place_of(state.name)
            raise StateError(
                f"the state of {state.name!r} can't be read: {error}. Its events wait; to have the key begin "
                f"anew, delete it: nats kv del {bucket} {key}"
            ) from error
