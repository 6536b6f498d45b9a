"""Sagas that wait while the nodes of their app, one after another, go over to a version with more steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import msgspec
import nats
import pytest
from nats.js.errors import NotFoundError

from support.nats import NatsServer
from support.running import Running, until
from support.saga_records import over, records
from support.saga_rolled import APP, HASTY, PATIENT, Charged, Delayed
from understudy.actors.event import Event
from understudy.actors.saga import Signal
from understudy.actors.saga_position import Phase
from understudy.runtime.jetstream.publisher import Publisher
from understudy.runtime.sagas import signal_subject

BUCKET = f"{APP}-state"
# At each moment of the deploy, so many of either kind begin to wait.
EACH = 3


def publish(url: str, events: list[Event]) -> None:
    """Publish events."""

    async def all_of_them() -> None:
        async with Publisher.connect(url) as publisher:
            for event in events:
                await publisher.publish(event)

    asyncio.run(all_of_them())


def timeouts(url: str, durable: str) -> Counter[str]:
    """How often each saga was told that its reply hasn't come."""

    async def read() -> Counter[str]:
        client = await nats.connect(url)
        try:
            js = client.jetstream()
            subject = signal_subject("FLIGHTS", durable)
            last = (await js.stream_info("FLIGHTS")).state.last_seq
            found = Counter[str]()
            for sequence in range(1, last + 1):
                # The schedule itself is gone when it has fired.
                with contextlib.suppress(NotFoundError):
                    message = await js.get_msg("FLIGHTS", seq=sequence)
                    if message.subject == subject and message.data:
                        signal = msgspec.msgpack.decode(message.data, type=Signal)
                        found[signal.saga] += signal.kind == "timeout"
            return +found
        finally:
            await client.close()

    return asyncio.run(read())


class Deploy:
    """The nodes, and the sagas that were started meanwhile."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.record = directory / "effects"
        self.sagas: list[str] = []
        self._directory = directory
        self._runs: dict[str, Running] = {}

    def start(self, node: str, version: int) -> None:
        """Start a node with a version of the app."""
        directory = self._directory / node
        directory.mkdir(exist_ok=True)
        run = Running(
            self.url,
            directory,
            "support.saga_rolled:app",
            ROLLED_VERSION=str(version),
            RECORD_FILE=str(self.record),
        )
        self._runs[node] = run
        run.start()

    def stop(self, node: str) -> int:
        """Drain a node; return its exit status."""
        return self._runs[node].terminate()

    def kill(self) -> None:
        """End what still runs."""
        for run in self._runs.values():
            if run.process is not None and run.process.poll() is None:
                run.process.kill()
                run.process.wait()

    def begin(self, moment: str) -> None:
        """Start sagas, and return when they wait for a reply, or have waited for it."""
        fresh = [f"{kind}-{moment}-{number}" for kind in (PATIENT, HASTY) for number in range(EACH)]
        self.sagas += fresh
        publish(self.url, [Delayed(booking=saga) for saga in fresh])

        def have_waited() -> bool:
            found = records(self.url, BUCKET)
            return all(
                saga in found and (found[saga].position.waiting or over({saga: found[saga]}))
                for saga in fresh
            )

        until(have_waited)

    def of(self, kind: str) -> list[str]:
        """The ids of one kind's sagas."""
        return [saga for saga in self.sagas if saga.startswith(kind)]

    def effects(self) -> dict[str, list[tuple[int, str]]]:
        """Of each saga, what was done or undone by which version, in order."""
        found: dict[str, list[tuple[int, str]]] = {saga: [] for saga in self.sagas}
        for line in self.record.read_text().splitlines():
            version, saga, what = line.split(" ", 2)
            found[saga].append((int(version), what))
        return found


@pytest.mark.timeout(180)
def test_waiting_sagas_survive_a_rolling_deploy_and_each_timer_fires_once(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Those that wait in vain time out before, while and after the nodes are replaced.

    What they have begun on the old version ends on the new one, with its steps.
    """
    deploy = Deploy(nats_server.url, tmp_path)
    try:
        deploy.start("a", 0)
        deploy.start("b", 0)
        deploy.begin("before")
        assert deploy.stop("a") == 0
        deploy.begin("while-one-is-gone")
        deploy.start("a", 1)
        deploy.begin("while-both-versions-run")
        assert deploy.stop("b") == 0
        deploy.begin("on-the-new-one")
        publish(nats_server.url, [Charged(booking=saga) for saga in deploy.of(PATIENT)])
        until(lambda: over(records(nats_server.url, BUCKET)) == len(deploy.sagas))
        assert deploy.stop("a") == 0
    finally:
        deploy.kill()
    found = records(nats_server.url, BUCKET)
    assert {found[saga].position.phase for saga in deploy.of(PATIENT)} == {Phase.COMPLETED}
    assert {found[saga].position.phase for saga in deploy.of(HASTY)} == {Phase.COMPENSATED}
    effects = deploy.effects()
    for saga in deploy.of(PATIENT):
        done = [what for _, what in effects[saga]]
        # The new version's step, too, though the saga was begun on the old one.
        assert done == ["reserve do", "charge do", "ticket do", "notify do"]
        assert [version for version, what in effects[saga] if what in ("ticket do", "notify do")] == [1, 1]
    for saga in deploy.of(HASTY):
        done = [what for _, what in effects[saga]]
        assert done == ["reserve do", "charge do", "charge undo", "reserve undo"]
    begun_by = {effects[saga][0][0] for saga in deploy.sagas}
    assert begun_by == {0, 1}
    assert timeouts(nats_server.url, f"{APP}-{HASTY}") == Counter(deploy.of(HASTY))
    assert not timeouts(nats_server.url, f"{APP}-{PATIENT}")
