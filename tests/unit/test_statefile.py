"""A supervisor's view in its file, also where there is no room for another."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from understudy.runtime.supervision.statefile import SupervisorStatus, read_state, write_state


def view(generation: int, reason: str = "") -> SupervisorStatus:
    return SupervisorStatus(
        name="root",
        pid=1,
        generation=generation,
        state="up",
        reason=reason,
        heartbeat=float(generation),
        not_drained=(),
        children=(),
    )


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that makes new files and has no room for what should stand in them."""

    def write_bytes(path: Path, _body: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """And before that there is nothing."""
    assert read_state(tmp_path, "root") is None
    write_state(tmp_path, view(1))
    assert read_state(tmp_path, "root") == view(1)
    assert [path.name for path in tmp_path.iterdir()] == ["root.supervisor.json"]


def test_a_full_file_system_takes_a_view_where_the_last_one_stands(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A supervisor whose heartbeat stops would be taken for hung, and restarted for nothing."""
    write_state(tmp_path, view(1, "x" * 500))
    request.getfixturevalue("full")
    write_state(tmp_path, view(2, "y" * 2000))
    assert read_state(tmp_path, "root") == view(2, "y" * 2000)
    write_state(tmp_path, view(3))
    assert read_state(tmp_path, "root") == view(3)
    assert [path.name for path in tmp_path.iterdir()] == ["root.supervisor.json"]


@pytest.mark.usefixtures("full")
def test_a_view_for_which_there_is_no_room_at_all_is_an_error(tmp_path: Path) -> None:
    """The supervisor says so and goes on."""
    with pytest.raises(OSError, match="No space left on device"):
        write_state(tmp_path, view(1))
    assert list(tmp_path.iterdir()) == []


def test_a_view_that_is_just_written_over_is_read_again(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Readers take no lock."""
    write_state(tmp_path, view(1, "x" * 9000))
    request.getfixturevalue("full")

    def write() -> None:
        for generation in range(2, 2000):
            write_state(tmp_path, view(generation, "y" * generation))

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        assert read_state(tmp_path, "root") is not None
    writer.join()
    assert read_state(tmp_path, "root") == view(1999, "y" * 1999)
