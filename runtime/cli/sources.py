"""The files of a user's project whose change restarts the tree."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from understudy.actors.errors import ConfigurationError

# More than any project has. Without a bound, one who starts this in / or at home waits for ever.
MAX_DIRECTORIES = 5000
_INSTALLED = {"site-packages", "dist-packages"}
_NEVER = {"__pycache__", "node_modules", *_INSTALLED}


class _Version(NamedTuple):
    # What a write or a rename changes, be the clock as coarse as it may.
    modified_ns: int
    size: int
    inode: int


class Sources:
    """The Python files below some directories, and the settings file.

    Hidden directories, virtual environments, caches and the runtime's own directory are left out. What has
    changed is found by comparing, not from the events of a watch: so it doesn't matter how an editor saves.
    """

    def __init__(self, roots: list[Path], settings_file: Path, *, without: Path) -> None:
        """Note how the files are now.

        Args:
            roots: the directories, searched with what is below them.
            settings_file: which need not exist.
            without: a directory that isn't searched.

        Raises:
            ConfigurationError: there are too many directories below a root.
        """
        self._roots = roots
        self._settings_file = settings_file
        self._without = without.resolve()
        self._seen = self._look()

    @classmethod
    def of(cls, target: str, settings_file: Path, *, without: Path) -> Sources:
        """Return the sources of an app: the working directory, and its package if that is elsewhere."""
        here = Path.cwd()
        elsewhere = [
            directory
            for directory in _package_directories(target.partition(":")[0].partition(".")[0])
            # What is installed for good isn't what somebody edits.
            if not directory.is_relative_to(here) and _INSTALLED.isdisjoint(directory.parts)
        ]
        return cls([here, *elsewhere], settings_file.absolute(), without=without)

    def directories(self) -> list[Path]:
        """Return the directories that hold such files or may come to; what is below each isn't included."""
        found = {directory for directory, _ in self._walk()}
        if self._settings_file.parent.is_dir():
            found.add(self._settings_file.parent)
        return sorted(found)

    def changes(self) -> list[str]:
        """Return which files were added, changed or deleted since the last call, or since the start."""
        before, self._seen = self._seen, self._look()
        paths = before.keys() | self._seen.keys()
        return sorted(os.path.relpath(path) for path in paths if before.get(path) != self._seen.get(path))

    def _look(self) -> dict[Path, _Version]:
        paths = [directory / name for directory, names in self._walk() for name in names]
        found = {}
        for path in [*paths, self._settings_file]:
            try:
                status = path.stat()
            except OSError:  # it has just been deleted or renamed, or is a link to nothing
                continue
            found[path] = _Version(status.st_mtime_ns, status.st_size, status.st_ino)
        return found

    def _walk(self) -> Iterator[tuple[Path, list[str]]]:
        count = 0
        for root in self._roots:
            for name, below, files in os.walk(root):
                directory = Path(name)
                below[:] = [one for one in below if self._is_searched(directory / one)]
                count += 1
                if count > MAX_DIRECTORIES:
                    raise ConfigurationError(
                        f"--reload: there are more than {MAX_DIRECTORIES} directories below {root}; "
                        "start it in your project's own directory"
                    )
                yield directory, [file for file in files if file.endswith(".py")]

    def _is_searched(self, directory: Path) -> bool:
        return not (
            directory.name.startswith(".")
            or directory.name in _NEVER
            or (directory / "pyvenv.cfg").exists()
            or directory.resolve() == self._without
        )


def _package_directories(name: str) -> list[Path]:
    """Return where a top-level package is, or the module that stands alone; nothing if there is none."""
    # As load_app looks: in the working directory first. A top-level name is found without an import.
    spec = importlib.machinery.PathFinder.find_spec(name, [str(Path.cwd())]) or importlib.util.find_spec(name)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(location).resolve() for location in spec.submodule_search_locations]
    return [Path(spec.origin).resolve().parent] if spec.has_location and spec.origin else []
