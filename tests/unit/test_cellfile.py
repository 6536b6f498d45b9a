"""The cell file: what a cell leaves behind, and who may read it."""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.runtime.cell.cellfile import CellFile, CellFileError, DeadCellFile, Identity
from understudy.runtime.cell.ledger import LEDGER_OFFSET, SLOT_SIZE, Entry, SlotState
from understudy.runtime.cell.status import (
    COUNTERS,
    PAGE,
    BreakerStatus,
    CellState,
    CellStatus,
    boottime,
    read_status,
)

IDENTITY = Identity(
    app="shop",
    actor="billing",
    cell="billing/0",
    durable="shop-billing",
    stream="ORDERS",
    stream_created="2026-01-01T00:00:00Z",
    consumer_created="2026-01-02T00:00:00Z",
    boot_id="boot",
    run_id="run",
    generation=1,
)

FLOCK = struct.Struct("@hhqqi4x")
OWNER = """
import sys
from pathlib import Path
from understudy.runtime.cell.cellfile import CellFile, Identity
identity = Identity(app="shop", actor="billing", cell="billing/0", durable="shop-billing", stream="ORDERS",
                    boot_id="boot", run_id="run", generation=1)
file = CellFile.create(Path(sys.argv[1]), identity, 4)
file.ledger.handling(file.ledger.hold(7, 2, 1.5))
file.ledger.hold(9, 1, 2.5)
print("ready", flush=True)
sys.stdin.read()
"""


def is_owner_alive(path: Path) -> bool:
    """Return whether some other process holds the file's lock; false if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        probe = fcntl.fcntl(descriptor, fcntl.F_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        return bool(FLOCK.unpack(probe)[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's cell file is to be."""
    return tmp_path / "billing.0.1.cell"


@contextmanager
def owner_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that owns the file, until the block ends."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def entries_of(path: Path) -> list[Entry]:
    """Return the ledger's entries; the lock is no obstacle within one process."""
    dead = DeadCellFile.claim(path)
    assert dead is not None
    entries = dead.entries
    dead.release()
    return entries


def test_a_new_file_says_who_owns_it_and_that_it_starts(path: Path) -> None:
    """Status and identity are whole from the first moment on."""
    before = boottime()
    CellFile.create(path, IDENTITY, 16)
    status = read_status(path)
    assert status is not None
    assert before <= status.heartbeat <= boottime()
    assert msgspec.structs.replace(status, heartbeat=0.0) == CellStatus(
        pid=os.getpid(),
        state="starting",
        reason="",
        heartbeat=0.0,
        control_heartbeat=0.0,
        connected=False,
        pause="none",
        held=0,
        capacity=16,
        counters=dict.fromkeys(COUNTERS, 0),
    )
    dead = DeadCellFile.claim(path)
    assert dead is not None
    assert dead.identity == IDENTITY
    assert dead.entries == []
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_the_owner_writes_is_read_without_the_lock(path: Path) -> None:
    """State, reason, gauges and counters reach a reader while the owner lives."""
    file = CellFile.create(path, IDENTITY, 16)
    file.status.state(CellState.PAUSED, "circuit breaker mail is open")
    file.status.gauge("held", 3)
    file.status.gauge("connected", 1)
    file.status.count("handled")
    file.status.count("handled", 41)
    status = read_status(path)
    assert status is not None
    assert (status.state, status.reason) == ("paused", "circuit breaker mail is open")
    assert (status.held, status.connected, status.counters["handled"]) == (3, True, 42)
    file.status.state(CellState.UP)
    status = read_status(path)
    assert status is not None
    assert (status.state, status.reason) == ("up", "")


def test_the_two_threads_heartbeats_are_told_apart(path: Path) -> None:
    """One that is stuck must show although the other runs."""
    file = CellFile.create(path, IDENTITY, 16)
    file.status.beat_control()
    between = boottime()
    file.status.beat()
    status = read_status(path)
    assert status is not None
    assert 0 < status.control_heartbeat <= between <= status.heartbeat <= boottime()
    assert (status.state, status.counters) == ("starting", dict.fromkeys(COUNTERS, 0))


def test_a_long_reason_is_cut_and_leaves_the_ledger_alone(path: Path) -> None:
    """Whatever an exception's text holds fits into its page, even halves of a surrogate pair."""
    file = CellFile.create(path, IDENTITY, 4)
    file.ledger.hold(1, 1, 0.0)
    file.status.state(CellState.FAILED, "ü" * PAGE)
    status = read_status(path)
    assert status is not None
    assert status.reason == "ü" * ((PAGE - 2) // 2)
    file.status.state(CellState.FAILED, "no file \udcff")
    status = read_status(path)
    assert status is not None
    assert status.reason == "no file \\udcff"
    assert [entry.sequence for entry in entries_of(path)] == [1]


def test_the_creation_times_come_later(path: Path) -> None:
    """A file is bound to its consumer once the server has said when it made it."""
    file = CellFile.create(path, msgspec.structs.replace(IDENTITY, consumer_created=""), 4)
    file.bind(IDENTITY)
    dead = DeadCellFile.claim(path)
    assert dead is not None
    assert dead.identity == IDENTITY


@pytest.mark.parametrize("field", ["app", "durable", "stream_created", "consumer_created", "boot_id"])
def test_another_consumer_s_file_is_told_apart(field: str) -> None:
    """App, durable, creation times and boot decide whose deliveries a ledger speaks of."""
    assert not IDENTITY.same_consumer(msgspec.structs.replace(IDENTITY, **{field: "other"}))


@pytest.mark.parametrize("field", ["actor", "cell", "stream", "pin_id", "run_id"])
def test_another_run_s_file_is_of_the_same_consumer(field: str) -> None:
    """The run id only says which run wrote it."""
    assert IDENTITY.same_consumer(msgspec.structs.replace(IDENTITY, **{field: "other"}, generation=9))


def test_a_live_owner_s_file_can_t_be_claimed_and_a_killed_one_s_can(path: Path) -> None:
    """The lock goes with the process, however it ends, and the ledger is as it was then."""
    with owner_process(path) as owner:
        assert is_owner_alive(path)
        assert DeadCellFile.claim(path) is None
        status = read_status(path)
        assert status is not None
        assert status.pid == owner.pid
        # Reading didn't take the lock away.
        assert is_owner_alive(path)
        owner.kill()
        owner.wait()
        assert not is_owner_alive(path)
        dead = DeadCellFile.claim(path)
        assert dead is not None
        assert dead.entries == [Entry(7, 2, 1.5, SlotState.HANDLING), Entry(9, 1, 2.5, SlotState.HELD)]
        dead.discard()
        assert not path.exists()


def test_a_claimed_file_can_t_be_claimed_by_another_process(path: Path) -> None:
    """Two replacements never take over the same deliveries; one that lets go leaves it to the other."""
    claim = (
        "import sys; from pathlib import Path; from understudy.runtime.cell.cellfile import DeadCellFile;"
        "print(DeadCellFile.claim(Path(sys.argv[1])) is not None)"
    )

    def claimed_elsewhere() -> bytes:
        return subprocess.run([sys.executable, "-c", claim, path], capture_output=True, check=True).stdout

    with owner_process(path) as owner:
        owner.kill()
        owner.wait()
        dead = DeadCellFile.claim(path)
        assert dead is not None
        assert claimed_elsewhere() == b"False\n"
        dead.release()
        assert claimed_elsewhere() == b"True\n"


def test_a_forked_process_doesn_t_keep_the_lock(path: Path) -> None:
    """What a handler forks may outlive the cell without seeming to be it."""
    script = OWNER.replace(
        'print("ready"', "import os, signal\nif os.fork() == 0: signal.pause()\nprint('ready'"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"ready\n"
            assert is_owner_alive(path)
            owner.kill()
            owner.wait()
            assert not is_owner_alive(path)
        finally:
            # The fork's, too: it holds the pipe.
            os.killpg(owner.pid, 9)


def test_a_forked_process_can_t_write_into_the_ledger(path: Path) -> None:
    """Where it comes back into the cell's loop, it ends before it marks anything."""
    file = CellFile.create(path, IDENTITY, capacity=4)
    slot = file.ledger.hold(7, 1, 1.5)
    forked = os.fork()
    if forked == 0:
        faulthandler.disable()
        file.ledger.done(slot)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == -signal.SIGSEGV
    assert file.ledger.done_sequences() == []


def test_a_missing_file_is_nobody_s(path: Path) -> None:
    """A file that went meanwhile is no error: its cell drained, or somebody took it over."""
    assert DeadCellFile.claim(path) is None
    assert read_status(path) is None
    assert not is_owner_alive(path)


def test_an_incomplete_file_has_no_status_yet(path: Path) -> None:
    """Between creation and the first header a reader sees nothing instead of zeros."""
    path.write_bytes(b"")
    assert read_status(path) is None
    path.write_bytes(b"\0" * (LEDGER_OFFSET + PAGE))
    assert read_status(path) is None


def test_a_file_that_exists_is_not_overwritten(path: Path) -> None:
    """A second start of one generation is an error, and the first one's ledger stays."""
    file = CellFile.create(path, IDENTITY, 4)
    file.ledger.hold(1, 1, 0.0)
    with pytest.raises(FileExistsError):
        CellFile.create(path, IDENTITY, 4)
    assert [entry.sequence for entry in entries_of(path)] == [1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "a cell file has at least 12288 bytes, this has 0"),
        (lambda data: data[:LEDGER_OFFSET], "the ledger is cut short"),
        (lambda data: b"\0" * len(data), "not a cell file of version 1"),
        (lambda data: b"PNG" + data[3:], "not a cell file of version 1"),
        (lambda data: data[:8] + b"\2" + data[9:], "not a cell file of version 1"),
        (lambda data: data[:64] + b"\xc1" + data[65:], "the identity can't be read: "),
    ],
    ids=["empty", "truncated", "torn at birth", "foreign", "another version", "identity torn"],
)
def test_a_damaged_file_says_what_is_wrong(path: Path, damage: object, message: str) -> None:
    """Torn, foreign and truncated files are errors, and claiming one leaves it unlocked."""
    CellFile.create(path, IDENTITY, 4)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CellFileError) as raised:
        DeadCellFile.claim(path)
    assert str(raised.value).startswith(message)
    assert not is_owner_alive(path)


def test_names_that_don_t_fit_are_refused_and_leave_no_file(path: Path) -> None:
    """The header has one page; the error says what to shorten."""
    identity = msgspec.structs.replace(IDENTITY, durable="d" * PAGE)
    with pytest.raises(CellFileError) as raised:
        CellFile.create(path, identity, 4)
    assert str(raised.value) == "the names of cell 'billing/0' do not fit into one page; shorten them"
    assert not path.exists()


def test_a_full_tmpfs_is_an_error_at_birth_and_leaves_no_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real blocks are taken at once, so that no later store ends in a SIGBUS."""

    def full(descriptor: int, offset: int, length: int) -> None:
        assert (offset, length) == (0, LEDGER_OFFSET + PAGE)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        CellFile.create(path, IDENTITY, 4)
    assert str(raised.value) == f"[Errno 28] No space left on device: '{path}'"
    assert not path.exists()


def test_the_blocks_are_really_there(path: Path) -> None:
    """A sparse file could still hit a full tmpfs."""
    CellFile.create(path, IDENTITY, 1024)
    assert path.stat().st_blocks * 512 >= LEDGER_OFFSET + (2 * 1024 + 64) * SLOT_SIZE


def test_entries_are_in_stream_order_whatever_slots_they_have(path: Path) -> None:
    """A takeover goes by the stream."""
    ledger = CellFile.create(path, IDENTITY, 4).ledger
    for sequence in (30, 10, 20):
        ledger.hold(sequence, 1, 0.0)
    assert [entry.sequence for entry in entries_of(path)] == [10, 20, 30]


def test_a_slot_says_what_became_of_its_delivery(path: Path) -> None:
    """Held, handling, held again, done; fields and the time of the last extension are kept."""
    ledger = CellFile.create(path, IDENTITY, 4).ledger
    slot = ledger.hold(2**53, 2**32 - 1, 1.25)
    assert entries_of(path) == [Entry(2**53, 2**32 - 1, 1.25, SlotState.HELD)]
    ledger.handling(slot)
    ledger.extend(slot, 7.5)
    assert entries_of(path) == [Entry(2**53, 2**32 - 1, 7.5, SlotState.HANDLING)]
    ledger.held(slot)
    assert entries_of(path)[0].state is SlotState.HELD
    ledger.done(slot)
    assert entries_of(path) == [Entry(2**53, 2**32 - 1, 7.5, SlotState.DONE)]


def test_a_death_while_a_slot_is_filled_leaves_no_entry(path: Path) -> None:
    """The state byte is the last thing to be written: fields without it are no delivery."""
    file = CellFile.create(path, IDENTITY, 4)
    slot = file.ledger.hold(1, 1, 0.0)
    data = bytearray(path.read_bytes())
    assert data[slot + SLOT_SIZE - 1] == SlotState.HELD
    data[slot + SLOT_SIZE - 1] = SlotState.FREE
    path.write_bytes(data)
    assert entries_of(path) == []


def test_done_slots_are_used_again_last_of_all(path: Path) -> None:
    """What is done stays as long as there is room, so that a replacement can repeat its ack."""
    ledger = CellFile.create(path, IDENTITY, 1).ledger
    count = 2 * 1 + 64
    first = ledger.hold(1, 1, 0.0)
    ledger.done(first)
    for sequence in range(2, count + 1):
        ledger.hold(sequence, 1, 0.0)
        assert ledger.done_sequences() == [1]
    assert ledger.hold(count + 1, 1, 0.0) == first
    assert ledger.done_sequences() == []
    assert [entry.sequence for entry in entries_of(path)] == list(range(2, count + 2))
    with pytest.raises(IndexError):
        ledger.hold(count + 2, 1, 0.0)


def test_a_released_slot_is_forgotten(path: Path) -> None:
    """What was given back to the server is nobody's to take over."""
    ledger = CellFile.create(path, IDENTITY, 4).ledger
    ledger.release(ledger.hold(1, 1, 0.0))
    assert entries_of(path) == []
    assert ledger.done_sequences() == []


def test_a_drained_cell_removes_its_file(path: Path) -> None:
    """Nothing is held, so nothing is left; removing twice is no error."""
    file = CellFile.create(path, IDENTITY, 4)
    file.remove()
    file.remove()
    assert not path.exists()


STEPS = st.lists(
    st.tuples(st.sampled_from(["hold", "handling", "held", "acking", "done", "release"]), st.integers(0, 200))
)


@given(STEPS)
def test_any_history_leaves_exactly_the_deliveries_that_are_left(steps: list[tuple[str, int]]) -> None:
    """Whatever the order of steps, a reader sees each live delivery once in its last state."""
    base = os.environ.get("XDG_RUNTIME_DIR") or "/dev/shm"
    with tempfile.TemporaryDirectory(prefix="understudy-test-", dir=base) as directory:
        path = Path(directory, "billing.0.1.cell")
        file = CellFile.create(path, IDENTITY, 4)
        slot_count = 2 * 4 + 64
        live: dict[int, int] = {}
        states: dict[int, SlotState] = {}
        free = [None] * slot_count
        done: list[int | None] = list(free)
        for number, (step, choice) in enumerate(steps, start=1):
            if step == "hold":
                if not done:
                    with pytest.raises(IndexError):
                        file.ledger.hold(number, 1, 0.0)
                    continue
                # First in, first out: the slot that has been free for longest, with what it still says.
                forgotten = done.pop(0)
                if forgotten is not None:
                    del states[forgotten]
                live[number] = file.ledger.hold(number, 1, 0.0)
                states[number] = SlotState.HELD
                continue
            if not live:
                continue
            sequence = sorted(live)[choice % len(live)]
            if step == "handling":
                file.ledger.handling(live[sequence])
                states[sequence] = SlotState.HANDLING
            elif step == "held":
                file.ledger.held(live[sequence])
                states[sequence] = SlotState.HELD
            elif step == "acking":
                file.ledger.acking(live[sequence])
                states[sequence] = SlotState.DONE
            elif step == "done":
                file.ledger.done(live.pop(sequence))
                states[sequence] = SlotState.DONE
                done.append(sequence)
            else:
                file.ledger.release(live.pop(sequence))
                del states[sequence]
                done.append(None)
        assert {entry.sequence: entry.state for entry in entries_of(path)} == states
        acked = {sequence for sequence, state in states.items() if state is SlotState.DONE}
        assert set(file.ledger.done_sequences()) == acked


def test_it_says_what_its_breakers_do(path: Path) -> None:
    """Each with its state and since when; of too many, those that are closed are left out."""
    file = CellFile.create(path, IDENTITY, 4)

    def shown() -> tuple[BreakerStatus, ...]:
        status = read_status(path)
        assert status is not None
        return status.breakers

    assert shown() == ()
    breakers = (
        BreakerStatus(name="mail", state="closed"),
        BreakerStatus(name="payments", state="open", since=12.5),
    )
    file.status.breakers(breakers)
    assert set(shown()) == set(breakers)
    file.status.breakers(
        [BreakerStatus(name=f"breaker-{n:060}", state="closed") for n in range(60)] + [breakers[1]]
    )
    assert len(shown()) > 10
    assert breakers[1] in shown()
    # Nothing of it reaches into its neighbours.
    file.status.beat_control()
    status = read_status(path)
    assert status is not None
    assert status.control_heartbeat > 0
    assert status.counters == dict.fromkeys(COUNTERS, 0)
    file.status.breakers(())
    assert shown() == ()
