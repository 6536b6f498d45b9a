"""What becomes of a batch whose process dies."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import nats
import pytest

from support.lines import read_lines
from support.nats import NatsServer
from support.recorder import Noted
from support.running import Running, running, until
from understudy.runtime.jetstream.publisher import Publisher

TARGET = "support.batch_recorder:app"


def note(url: str, numbers: range) -> None:
    """Publish numbered events of five customers, in their order, before the app runs.

    So none of them is late for its batch, which doesn't wait long.
    """

    async def publish() -> None:
        client = await nats.connect(url)
        await client.jetstream().add_stream(name="NOTES", subjects=["notes.>"])
        await client.close()
        async with Publisher.connect(url) as publisher:
            for number in numbers:
                await publisher.publish(Noted(number=number, customer=f"c{number % 5}"))

    asyncio.run(publish())


def begun(run: Running) -> list[list[str]]:
    """The lines of what was begun, split."""
    return [line.split() for line in read_lines(run.record.with_name(f"{run.record.name}.begun"))]


@pytest.mark.parametrize("keyed", ["", "yes"])
def test_the_members_of_a_killed_batch_are_handled_each_alone(
    nats_server: NatsServer, tmp_path: Path, keyed: str
) -> None:
    """And the rest in batches again, in the order of the stream or of each key."""
    note(nats_server.url, range(200))
    with running(
        nats_server.url,
        tmp_path,
        TARGET,
        RECORD_SECONDS="0.05",
        RECORD_STUCK="50",
        RECORD_ACK_WAIT="120",
        RECORD_KEYED=keyed,
    ) as run:
        # Nothing is on its way when the mailbox is full.
        until(lambda: any(int(line[1]) >= 50 for line in begun(run)))
        until(lambda: run.cell("recorder/0")["status"]["held"] == 64)
        killed = run.cell("recorder/0")["status"]["pid"]
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(run.numbers()) == 200)
        ended = {int(line[1]) for line in run.handled() if int(line[0]) == killed}
        in_hand = {int(line[1]) for line in begun(run) if int(line[0]) == killed} - ended
        assert 1 < len(in_hand) <= 16
        after = [line for line in begun(run) if int(line[0]) != killed]
        assert {line[5] for line in after if int(line[1]) in in_hand} == {"1"}
        assert "16" in {line[5] for line in after}
        orders: dict[str, list[int]] = {}
        for line in after:
            orders.setdefault(line[4] if keyed else "", []).append(int(line[1]))
        assert all(numbers == sorted(numbers) for numbers in orders.values())
        assert set(run.numbers().values()) == {1}
        cell = run.cell("recorder/0")
        assert cell["supervision"]["restarts"] == 1
        assert cell["status"]["counters"]["taken_over"] == 64
        assert cell["status"]["counters"]["redelivered"] == 0
        assert run.terminate() == 0


def test_a_member_that_kills_its_process_is_dead_lettered_and_its_neighbours_are_handled(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """It takes one batch with it; after that it is alone, up to max_crashes deaths in all."""
    note(nats_server.url, range(100))
    with running(nats_server.url, tmp_path, TARGET, RECORD_DEADLY="17", RECORD_ACK_WAIT="120") as run:
        until(lambda: len(run.numbers()) == 99)
        until(lambda: run.events("dead letter"))
        (letter,) = run.events("dead letter")
        assert (letter["reason"], letter["sequence"]) == ("crashed", 18)
        assert "killed by SIGSEGV" in letter["error"]
        assert 17 not in run.numbers()
        assert set(run.numbers().values()) == {1}
        sizes = [int(line[5]) for line in begun(run) if line[1] == "17"]
        assert sizes[1:] == [1, 1]
        assert 1 < sizes[0] <= 16
        assert run.cell("recorder/0")["supervision"]["restarts"] == 3
        assert run.terminate() == 0
