"""The README's first example does what the README says."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

from support.nats import NatsServer
from support.running import running, until
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import api, connection

README = Path(__file__).parents[2] / "README.md"


def stored(url: str) -> dict[str, int]:
    """Return how many messages the stream holds by subject."""

    async def ask() -> dict[str, int]:
        client = await connection.connect(ConnectionSpec(servers=(url,)), name="test")
        try:
            info = await api.request(client, "STREAM.INFO.FLIGHTS", {"subjects_filter": ">"})
            return dict(info["state"].get("subjects") or {})
        finally:
            await connection.close(client)

    return asyncio.run(ask())


def test_the_first_example_publishes_a_delayed_event(nats_server: NatsServer, tmp_path: Path) -> None:
    """Saved, run and fed as the README says, it turns a late departure into an event of its own."""
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples[0].splitlines()) < 25
    (tmp_path / "flights.py").write_text(examples[0])
    body = re.search(r"understudy publish flights.departed --json '(.*)'", README.read_text())
    assert body is not None
    with running(nats_server.url, tmp_path, "flights:app", PYTHONPATH=str(tmp_path)) as run:
        publish = [sys.executable, "-m", "understudy.runtime", "publish", "flights.departed"]
        subprocess.run(
            [*publish, "--servers", nats_server.url, "--json", body.group(1)], check=True, cwd=tmp_path
        )
        until(lambda: stored(nats_server.url) == {"flights.departed": 1, "flights.delayed": 1})
        assert run.terminate() == 0
