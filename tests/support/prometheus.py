"""A real Prometheus, and what it says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from support.nats import free_port
from support.tree import wait_until

# Where .ci/prometheus unpacks Debian's package, if the system doesn't have it.
UNPACKED = Path(sys.prefix, "debian", "usr", "bin")


def find(program: str) -> str | None:
    """Return the path of `prometheus` or `promtool`, None if there is none."""
    return shutil.which(program) or shutil.which(program, path=str(UNPACKED))


class Prometheus:
    """A Prometheus for the length of a `with` block, on loopback.

    Args:
        program: its path.
        config: its configuration file.
        directory: where it keeps its data and its log.
    """

    def __init__(self, program: str, config: Path, directory: Path) -> None:
        address = f"127.0.0.1:{free_port()}"
        self._log = directory / "prometheus.log"
        self._command = [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={address}",
        ]
        self._client = httpx.Client(base_url=f"http://{address}", timeout=60)

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(self._is_up, 120, "prometheus")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()

    def _is_up(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API, which has to be one without an error or a warning."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", (path, parameters, answer)
        assert not answer.get("warnings"), (path, parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what an expression is now: an instant vector."""
        data = self.get("query", query=expression)
        assert data["resultType"] == "vector", (expression, data)
        found: list[dict[str, Any]] = data["result"]
        return found
