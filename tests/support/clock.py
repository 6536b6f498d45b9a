"""A time of day that jumps under a process and all its children, by libfaketime.

Only the time of day: what measures intervals (CLOCK_MONOTONIC, CLOCK_BOOTTIME) goes on, as it does when an
administrator or NTP sets a system's clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path


class Clock:
    """The clock of what is started with its environment.

    Args:
        directory: for the file that the processes read it from.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self.jump_to(0)

    @property
    def environment(self) -> dict[str, str]:
        """What a process is to be started with."""
        package = find_spec("libfaketime")
        assert package is not None, "libfaketime is missing: make dev"
        assert package.origin is not None
        library = Path(package.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
        assert library.is_file(), f"{library} is missing: the package has none for this platform"
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump_to(self, offset_seconds: int) -> None:
        """Set the clock, so many seconds from the true time."""
        # Replaced whole, since it may be read at any moment.
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset_seconds:+d}\n")
        new.replace(self._file)

    @staticmethod
    @contextmanager
    def loaded_into(pid: int) -> Iterator[None]:
        """Remove at the end what libfaketime leaves in shared memory for the process that loaded it first."""
        try:
            yield
        finally:
            for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
                Path("/dev/shm", name).unlink(missing_ok=True)
