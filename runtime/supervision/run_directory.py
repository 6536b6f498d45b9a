"""The folder on tmpfs that the processes of one run share, and what dead runs left in theirs."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from understudy.actors.errors import ConfigurationError
from understudy.runtime.cell.status import read_status

VARIABLE = "UNDERSTUDY_RUN_DIRECTORY"
TMPFS = Path("/dev/shm")  # noqa: S108 - the folder below it is ours alone, and checked to be
LOCK_NAME = "launcher.lock"
# Less than this can't hold the files of any run.
ROOM_BYTES = 64 * 1024


class RunDirectory:
    """This run's folder, locked for life by the launcher.

    The lock is a POSIX record lock: it can't be inherited, and falls with the launcher's process however
    that ends.
    """

    def __init__(self, path: Path, run_id: str, lock: int) -> None:
        self.path = path
        self.run_id = run_id
        self._lock = lock

    @classmethod
    def create(cls, app: str) -> Self:
        """Make and lock a folder for a new run of an app.

        Args:
            app: the app's name.

        Raises:
            ConfigurationError: the folder can't be written, or belongs to someone else.
        """
        base = _base()
        run_id = secrets.token_hex(8)
        # Under a hidden name until it is locked: another launcher's sweep takes an unlocked one for dead.
        unborn = base / app / f".{run_id}"
        try:
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            if VARIABLE not in os.environ and base.lstat().st_uid != os.getuid():
                # Everyone may write to the folder above, so someone else could have been first.
                raise PermissionError(errno.EACCES, "it belongs to another user")
            (base / app).mkdir(mode=0o700, exist_ok=True)
            unborn.mkdir(mode=0o700)
            lock = os.open(unborn / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # What is full takes new folders and empty files all the same.
            os.posix_fallocate(lock, 0, ROOM_BYTES)
            os.ftruncate(lock, 0)
            path = unborn.rename(base / app / run_id)
        except OSError as error:
            shutil.rmtree(unborn, ignore_errors=True)
            raise ConfigurationError(
                f"{base}: cannot be used for the files of a run: {error.strerror}; "
                f"set {VARIABLE} to a folder that is yours, best on tmpfs"
            ) from error
        return cls(path, run_id, lock)

    def sweep(self, cells: Mapping[str, int]) -> int:
        """Take over the cell files that dead runs of the app left, and delete the rest of theirs.

        Args:
            cells: how many cells each actor has now; files of other actors are deleted.

        Returns:
            How many cell files were taken over.
        """
        taken = 0
        for other in self.path.parent.iterdir():
            if other != self.path and not other.name.startswith("."):
                taken += self._sweep_one(other, cells)
        return taken

    def _sweep_one(self, other: Path, cells: Mapping[str, int]) -> int:
        try:
            lock = os.open(other / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return 0
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return 0
        taken = 0
        for path in sorted(other.glob("*.cell")):
            actor, index, rest = path.name.removesuffix(".cell").split(".", 2)
            if actor not in cells:
                continue
            heir = index if index.isdecimal() and int(index) < cells[actor] else "0"
            # Swept once before and not taken over since: it already says whose it was.
            origin = rest if rest.startswith("old-") else f"old-{other.name[:8]}-{rest}"
            if heir != index:
                origin += f"-{index}"
            path.rename(self.path / f"{actor}.{heir}.{origin}.cell")
            taken += 1
        shutil.rmtree(other, ignore_errors=True)
        os.close(lock)
        return taken

    def cell_files(self) -> list[Path]:
        """Return the cell files that are there; a cell that has drained leaves none."""
        return list(self.path.glob("*.cell"))

    def is_gone(self) -> bool:
        """Return whether someone has deleted the folder, as systemd-logind may at a logout (`RemoveIPC=`)."""
        return not self.path.is_dir()

    def close(self) -> None:
        """Delete the folder, unless cell files in it still hold something for the next start."""
        for path in self.cell_files():
            status = read_status(path)
            if status is not None and status.state == "stopped" and status.held == 0:
                path.unlink(missing_ok=True)
        if not self.cell_files():
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _base() -> Path:
    if chosen := os.environ.get(VARIABLE):
        # Absolute: a handler may change its process' working directory.
        return Path(chosen).absolute()
    parent = TMPFS if TMPFS.is_dir() else Path(tempfile.gettempdir())
    return parent / f"understudy-{os.getuid()}"
