"""The folder of a run, and what is done with those of dead runs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.actors.errors import ConfigurationError
from understudy.runtime.cell.cellfile import CellFile, Identity, boot_id
from understudy.runtime.cell.status import CellState
from understudy.runtime.supervision.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where run directories are made."""
    monkeypatch.setenv("UNDERSTUDY_RUN_DIRECTORY", str(tmp_path / "base"))
    return tmp_path / "base"


def dead_run(base: Path, run_id: str, *cells: str) -> Path:
    """Return a folder as a killed launcher leaves it."""
    directory = base / "app" / run_id
    directory.mkdir(parents=True)
    (directory / "launcher.lock").touch()
    (directory / "root.supervisor.json").write_text("{}")
    for cell in cells:
        (directory / cell).write_text(cell)
    return directory


def names(run: RunDirectory) -> list[str]:
    """Return the cell files in a run's folder."""
    return sorted(path.name for path in run.path.glob("*.cell"))


def test_a_run_directory_is_readable_by_its_user_alone(base: Path) -> None:
    """Cell files hold what events are about."""
    run = RunDirectory.create("app")
    assert run.path.parent == base / "app"
    assert run.path.stat().st_mode & 0o777 == 0o700
    run.close()


def test_an_empty_run_directory_goes_at_the_end() -> None:
    """A clean run leaves nothing."""
    run = RunDirectory.create("app")
    (run.path / "root.supervisor.json").touch()
    run.close()
    assert not run.path.exists()


def test_a_cell_file_that_still_holds_something_stays(base: Path) -> None:
    """The next start takes it over."""
    run = RunDirectory.create("app")
    (run.path / "monitor.0.1.cell").write_bytes(b"a killed cell's")
    run.close()
    assert [path.name for path in base.rglob("*.cell")] == ["monitor.0.1.cell"]


def test_a_stopped_cells_empty_file_goes() -> None:
    """It says nothing that anyone needs."""
    run = RunDirectory.create("app")
    identity = Identity(
        app="app",
        actor="monitor",
        cell="monitor/0",
        durable="app-monitor",
        stream="S",
        boot_id=boot_id(),
        run_id=run.run_id,
        generation=1,
    )
    CellFile.create(run.path / "monitor.0.1.cell", identity, 4).status.state(CellState.STOPPED)
    run.close()
    assert not run.path.exists()


def test_a_sweep_takes_over_the_cell_files_of_dead_runs(base: Path) -> None:
    """Under a name that no generation of this run has; the rest of the dead run's folder is deleted."""
    dead = dead_run(base, "aaaaaaaabbbbbbbb", "monitor.0.3.cell", "monitor.1.1.cell")
    run = RunDirectory.create("app")
    assert run.sweep({"monitor": 2}) == 2
    assert names(run) == ["monitor.0.old-aaaaaaaa-3.cell", "monitor.1.old-aaaaaaaa-1.cell"]
    assert not dead.exists()


def test_a_cell_that_is_no_longer_there_leaves_its_file_to_the_first(base: Path) -> None:
    """Without taking the name of the first one's own."""
    dead_run(base, "aaaaaaaabbbbbbbb", "monitor.0.1.cell", "monitor.4.1.cell")
    run = RunDirectory.create("app")
    assert run.sweep({"monitor": 1}) == 2
    assert names(run) == ["monitor.0.old-aaaaaaaa-1-4.cell", "monitor.0.old-aaaaaaaa-1.cell"]


def test_a_file_that_was_swept_twice_still_says_whose_it_was(base: Path) -> None:
    """The run that died in between had not taken it over yet."""
    dead_run(base, "ccccccccdddddddd", "monitor.0.old-aaaaaaaa-3.cell", "monitor.0.3.cell")
    run = RunDirectory.create("app")
    assert run.sweep({"monitor": 1}) == 2
    assert names(run) == ["monitor.0.old-aaaaaaaa-3.cell", "monitor.0.old-cccccccc-3.cell"]


def test_files_of_an_actor_that_is_gone_are_deleted(base: Path) -> None:
    """Nobody would ever take them over."""
    dead_run(base, "aaaaaaaabbbbbbbb", "gone.0.1.cell")
    run = RunDirectory.create("app")
    assert run.sweep({"monitor": 1}) == 0
    assert list(base.rglob("*.cell")) == []


def test_a_living_run_is_left_alone(base: Path) -> None:
    """Its launcher holds the lock, in another process."""
    script = (
        "import sys; from understudy.runtime.supervision.run_directory import RunDirectory; "
        "run = RunDirectory.create('app'); (run.path / 'monitor.0.1.cell').touch(); "
        "print(run.path, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    alive = Path(other.stdout.readline().strip())
    run = RunDirectory.create("app")
    assert run.sweep({"monitor": 1}) == 0
    assert (alive / "monitor.0.1.cell").exists()
    other.kill()
    other.communicate()
    assert run.sweep({"monitor": 1}) == 1


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands in the way."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNDERSTUDY_RUN_DIRECTORY", str(tmp_path / "file" / "base"))
    with pytest.raises(ConfigurationError) as raised:
        RunDirectory.create("app")
    assert str(raised.value) == (
        f"{tmp_path}/file/base: cannot be used for the files of a run: Not a directory; "
        "set UNDERSTUDY_RUN_DIRECTORY to a folder that is yours, best on tmpfs"
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_someone_elses_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone may write to the default place, so someone could have been first."""
    monkeypatch.delenv("UNDERSTUDY_RUN_DIRECTORY")
    monkeypatch.setattr("understudy.runtime.supervision.run_directory.TMPFS", tmp_path)
    theirs = tmp_path / f"understudy-{os.getuid()}"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with pytest.raises(ConfigurationError, match="it belongs to another user"):
        RunDirectory.create("app")


def test_a_full_file_system_is_told_at_the_start(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It still takes folders and empty files, so that each process would fail later by itself."""

    def full(_descriptor: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigurationError) as caught:
        RunDirectory.create("app")
    assert str(caught.value) == (
        f"{base}: cannot be used for the files of a run: No space left on device; "
        "set UNDERSTUDY_RUN_DIRECTORY to a folder that is yours, best on tmpfs"
    )
    assert list((base / "app").iterdir()) == []


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler may change the working directory of its cell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_RUN_DIRECTORY", "here")
    run = RunDirectory.create("app")
    assert run.path.parent == tmp_path / "here" / "app"
    run.close()
