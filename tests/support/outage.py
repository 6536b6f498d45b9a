"""A service that dies under load, called by four cells on two nodes, and an account of every call.

`python -m support.outage --seconds 20`, in tests/, is the long form of what tests/faults/test_breakers.py
runs. The account goes to stdout as JSON; the exit status is 1 if it isn't as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
import psutil

from support.calling import CELLS, CONCURRENCY, FAIL_MAX, Asked
from support.load import Load
from support.nats import NatsServer
from support.running import Running, running, until
from support.streams import count_messages, is_settled
from understudy.runtime.telemetry.logs import configure_logging

NODES = 2
PER_SECOND = 500.0
WARM_SECONDS = 3.0
# How often the dead service is tried at least.
TRIALS = 3
# What a cell may grow by while the service is dead: nothing, but for what an allocator does.
GROWTH_BYTES = 8 * 1024 * 1024


class Call(NamedTuple):
    """One call: when it began and whether it was a trial, as its cell says, and how it was answered."""

    at: float
    number: int
    pid: int
    trial: bool
    ok: bool


class Service:
    """An HTTP server in a thread of its own, which can be dead; it notes each call, and its own answer."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.is_dead = False
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)
        self._listening = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def answered(self) -> Counter[int]:
        """Return how often each number was answered well."""
        return Counter(call.number for call in tuple(self.calls) if call.ok)

    def _run(self) -> None:
        server = self._loop.run_until_complete(
            asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=512)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            ok = not self.is_dead
            _, number, pid, began, trial = request.split(b" ", 2)[1].split(b"/")
            self.calls.append(Call(float(began), int(number), int(pid), bool(int(trial)), ok))
            status = b"200 OK" if ok else b"503 Service Unavailable"
            writer.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        except (OSError, asyncio.IncompleteReadError):
            # A cell that was stopped.
            return
        finally:
            writer.close()


class Account(msgspec.Struct, kw_only=True):
    """What an outage has shown.

    Args:
        events: that were published.
        dead_seconds: how long the service was dead.
        reset_seconds: the breaker's.
        in_flight: how many calls can be under way at once.
        attempts: that were counted.
        dead_letters: that were written.
        unanswered: events that the service never answered well.
        repeated: events that it answered well more than once.
        burst: calls to the dead service by cells that didn't know yet that the breaker was open.
        trials: calls to it by those that did.
        shortest_pause_seconds: between any two of those.
        alone: how often a cell could not speak to the others in time, as where the broker is slow, and went
            by what it saw itself.
        cells_that_tried: how many cells made them.
        growth_bytes: how much memory the cell that grew most took meanwhile.
        resumed_seconds: from the first good trial until the last of the cells was answered again.
        answered_per_second: in the second after that.
        openings, closings: of the breaker, over all cells.
        exit_statuses: of the nodes.
    """

    events: int
    dead_seconds: float
    reset_seconds: float
    in_flight: int
    attempts: int
    dead_letters: int
    unanswered: int
    repeated: int
    burst: int
    trials: int
    shortest_pause_seconds: float
    alone: int
    cells_that_tried: int
    growth_bytes: int
    resumed_seconds: float
    answered_per_second: int
    openings: int
    closings: int
    exit_statuses: list[int]

    def differences(self, *, timed: bool) -> list[str]:
        """Return what is not as it must be.

        Args:
            timed: whether all cells must also have heard of the outage at once, and gone on within a second.
        """
        found = []
        bound = FAIL_MAX * (1 if timed else NODES * CELLS) + self.in_flight
        if self.attempts > bound:
            found.append(f"{self.attempts} attempts were counted, of {bound} at most")
        if self.burst > bound:
            found.append(f"{self.burst} calls before all cells knew, of {bound} at most")
        if self.dead_letters:
            found.append(f"{self.dead_letters} dead letters")
        if self.unanswered:
            found.append(f"{self.unanswered} events were never answered")
        if self.shortest_pause_seconds < self.reset_seconds * 0.98 and not self.alone:
            found.append(f"two trials of the dead service within {self.shortest_pause_seconds:.3f} s")
        if timed and self.trials < self.dead_seconds / self.reset_seconds / 3:
            found.append(f"only {self.trials} trials in {self.dead_seconds:.1f} s")
        if self.growth_bytes > GROWTH_BYTES:
            found.append(f"a cell grew by {self.growth_bytes} bytes")
        if timed and self.resumed_seconds > 1:
            found.append(f"a cell went on {self.resumed_seconds:.2f} s after the first good trial")
        if timed and self.answered_per_second < PER_SECOND:
            found.append(
                f"{self.answered_per_second} events a second after that, of {PER_SECOND:.0f} at least"
            )
        if self.closings != 1 and not (self.closings and self.alone):
            found.append(f"{self.closings} closings")
        if any(self.exit_statuses):
            found.append(f"exit statuses {self.exit_statuses}")
        return found


def outage(server: NatsServer, directory: Path, *, dead_seconds: float, reset_seconds: float) -> Account:
    """Have the service die under load and come back, and account for every call.

    Call it in the main thread, since the broker dies with the thread that started it.

    Args:
        server: a broker that runs.
        directory: for the nodes' files.
        dead_seconds: how long the service is dead, if it is tried a few times within that.
        reset_seconds: the breaker's reset timeout.
    """
    with ExitStack() as stack:
        service = stack.enter_context(Service())
        nodes = []
        for number in range(NODES):
            own = directory / f"node-{number}"
            own.mkdir()
            nodes.append(
                stack.enter_context(
                    running(
                        *(server.url, own, "support.calling:app"),
                        SERVICE=str(service.port),
                        RESET_SECONDS=str(reset_seconds),
                    )
                )
            )
        published = -1

        def make(number: int) -> Asked:
            nonlocal published
            published = max(published, number)
            return Asked(number=number)

        with Load(server.url, make, per_second=PER_SECOND, keys=10):
            until(lambda: len(service.answered()) > PER_SECOND * WARM_SECONDS)
            before = _memory(nodes)
            died = time.monotonic()
            service.is_dead = True
            time.sleep(dead_seconds)
            until(lambda: sum(call.trial and not call.ok for call in tuple(service.calls)) >= TRIALS)
            after = _memory(nodes)
            back = time.monotonic()
            service.is_dead = False
            until(lambda: service.calls[-1].ok)
            # Under load for some time after.
            time.sleep(2.5)
        events = published + 1
        until(lambda: is_settled(server.url, "CALLS", ["calling-caller"]), 120)
        counters = [
            node.cell(f"caller/{index}")["status"]["counters"] for node in nodes for index in range(CELLS)
        ]
        alone = sum(len(node.events("breaker is local for now")) for node in nodes)
        statuses = [node.terminate() for node in nodes]
        answered = service.answered()
        dead = [call for call in service.calls if not call.ok]
        trials = sorted(call.at for call in dead if call.trial)
        good = [call for call in service.calls if call.ok and call.at >= back]
        firsts: dict[int, float] = {}
        for call in good:
            firsts.setdefault(call.pid, call.at)
        resumed = max(firsts.values())
        pauses = [later - earlier for earlier, later in itertools.pairwise(trials)]
        return Account(
            events=events,
            dead_seconds=round(back - died, 1),
            reset_seconds=reset_seconds,
            in_flight=NODES * CELLS * CONCURRENCY,
            attempts=sum(counted["failed"] for counted in counters),
            dead_letters=count_messages(server.url, "CALLING_DEAD_LETTERS"),
            unanswered=events - len(answered),
            repeated=sum(count > 1 for count in answered.values()),
            burst=len(dead) - len(trials),
            trials=len(trials),
            shortest_pause_seconds=round(min(pauses), 3),
            alone=alone,
            cells_that_tried=sum(counted["breaker_trials"] > 0 for counted in counters),
            growth_bytes=max(after[pid] - before[pid] for pid in before),
            resumed_seconds=round(resumed - good[0].at, 3),
            answered_per_second=sum(resumed <= call.at < resumed + 1 for call in good),
            openings=sum(counted["breaker_openings"] for counted in counters),
            closings=sum(counted["breaker_closings"] for counted in counters),
            exit_statuses=statuses,
        )


def _memory(nodes: list[Running]) -> dict[int, int]:
    """Return what each cell's process has for itself alone, in bytes."""
    cells: list[dict[str, Any]] = [node.cell(f"caller/{n}") for node in nodes for n in range(CELLS)]
    pids = [int(cell["supervision"]["pid"]) for cell in cells]
    return {pid: psutil.Process(pid).memory_full_info().uss for pid in pids}


def main(arguments: list[str] | None = None) -> int:
    """Run an outage as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m support.outage", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the service is dead")
    parser.add_argument("--reset-seconds", type=float, default=2.0, help="the breaker's reset timeout")
    options = parser.parse_args(arguments)
    configure_logging(level="error", format="console", context={})
    with tempfile.TemporaryDirectory() as directory, NatsServer(Path(directory, "nats")) as server:
        account = outage(
            server, Path(directory), dead_seconds=options.seconds, reset_seconds=options.reset_seconds
        )
    differences = account.differences(timed=True)
    print(json.dumps({**msgspec.to_builtins(account), "differences": differences}, indent=2))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
