"""What the numbers depend on, so that a report can say it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from nats.aio.client import Client

from benchmarks import nats_c

PACKAGES = ("understudy", "nats-py", "msgspec", "uvloop", "faststream")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured, and with what.

    Args:
        python, nats_server, packages, kernel: versions.
        cpu, cores, load: the processor, how many we may use, and the load average of a minute at the start.
        storage, sync: what the broker writes to, and when it has it on disk.
    """

    python: str
    nats_server: str
    packages: dict[str, str]
    kernel: str
    cpu: str
    cores: int
    load: float
    storage: str
    sync: str

    def lines(self) -> list[str]:
        """The same for people."""
        packages = ", ".join(f"{name} {number}" for name, number in self.packages.items())
        return [
            f"{packages}, Python {self.python}, nats-server {self.nats_server}",
            f"{self.cpu}, {self.cores} cores, load {self.load:.1f} at the start, Linux {self.kernel}",
            f"{self.storage}; {self.sync}",
        ]


def describe_environment(client: Client, directory: Path) -> Environment:
    """Look around.

    Args:
        client: a connection to the broker.
        directory: where the broker has its store.
    """
    return Environment(
        python=platform.python_version(),
        nats_server=_server_version(client),
        packages=_packages(),
        kernel=platform.release(),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        storage=f"file storage on {_filesystem(directory)}",
        sync="sync_interval is the server's default (2 min): a publish is confirmed before it is on disk",
    )


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if libnats := nats_c.library_version():
        found["libnats"] = libnats
    return found


def _server_version(client: Client) -> str:
    known = client.connected_server_version
    return f"{known.major}.{known.minor}.{known.patch}"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _filesystem(directory: Path) -> str:
    """Return the type of the file system that a directory is on: in memory, a disk costs nothing."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [(point, kind) for point, kind in mounts if directory.resolve().is_relative_to(point)]
    # Of two on one point, the later lies on top.
    return max(reversed(holding), key=lambda mount: len(mount[0]))[1] if holding else "an unknown file system"
