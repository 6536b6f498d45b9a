"""Every way to fail, tried again and again under load: who is started anew, how soon, and what it costs.

`python -m support.fault_table`, in tests/, prints the table of docs/faults.md; `--write` puts it there. With
20 runs of each it takes about half an hour. Progress goes to stderr; the exit status is 1 if anything was
lost, came again without an explanation, or if someone else was started anew than should be.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from support import fault_app
from support.fault_app import BYSTANDER, CONCURRENCY, KEYS, OPS, VICTIMS
from support.faults import EVENTS_PER_SECOND, FAULTS, RECOVERY_SECONDS, Fault, Scene, end_with_all
from support.tree import wait_until
from understudy.runtime.broker.binary import find_nats_server
from understudy.runtime.telemetry.logs import configure_logging


class Trial(NamedTuple):
    """What one fault led to.

    Args:
        milliseconds: from the fault, or the next start, to the victim's next event.
        restarted: whose process is another one now.
        reason: what the first of them says in the tree, or the log of the run's end.
    """

    milliseconds: float
    restarted: frozenset[str]
    reason: str


class Row(NamedTuple):
    """What a fault led to, over all its trials.

    Args:
        fault: which.
        trials: of it.
        events: that were published meanwhile.
        lost: how many of them an actor didn't handle, over all actors.
        twice: how many runs repeated another, over all actors.
        differences: what is not as it must be.
    """

    fault: Fault
    trials: list[Trial]
    events: int
    lost: int
    twice: int
    differences: list[str]


def try_once(scene: Scene, fault: Fault, victim: str) -> Trial:
    """Make a fault happen, wait until all is well again, and return what came of it."""
    scene.wait_until_handled()
    before = scene.processes()
    inflicted = fault.inflict(scene, victim)
    again = scene.handled_again(victim, inflicted)
    wait_until(scene.is_ready, RECOVERY_SECONDS, "ready")
    after = scene.processes()
    restarted = [name for name in before if before[name] != after[name]]
    if fault.ends_run:
        reason = "; ".join(entry["process"] for run in scene.runs for entry in run.log("control plane died"))
    else:
        reason = str(scene.run.child(restarted[0])["last_reason"]) if restarted else ""
    return Trial((again - inflicted.at) / 1e6, frozenset(restarted), reason)


class Account(NamedTuple):
    """What one run of the app comes to, over all faults that it was given; as in `Row`."""

    trials: list[Trial]
    events: int
    lost: int
    twice: int
    differences: list[str]


def try_in_turn(faults: Sequence[tuple[Fault, str]]) -> Account:
    """Run the app, and make one fault happen after the other, each to its victim."""
    trials: list[Trial] = []
    differences: list[str] = []
    with tempfile.TemporaryDirectory() as directory, Scene(Path(directory)) as scene:
        try:
            for fault, victim in faults:
                trial = try_once(scene, fault, victim)
                trials.append(trial)
                differences.extend(_differences_of(fault, victim, trial))
            stages, status = scene.finish()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            # Nobody got over it; what it would have cost isn't known.
            return Account(trials, 0, 0, 0, [*differences, f"{type(error).__name__}: {error}"])
    if status:
        differences.append(f"exit status {status}")
    for actor, stage in stages.items():
        differences.extend(f"{actor}: {difference}" for difference in stage.differences())
    return Account(
        trials,
        events=scene.load.published,
        lost=sum(stage.lost for stage in stages.values()),
        twice=sum(stage.repeats for stage in stages.values()),
        differences=differences,
    )


def try_often(fault: Fault, runs: int) -> Row:
    """Make a fault happen so often, each time to a victim that nothing has happened to yet."""
    row = Row(fault, [], 0, 0, 0, [])
    while len(row.trials) < runs:
        victims = VICTIMS[: 1 if fault.is_alone else runs - len(row.trials)]
        tried = try_in_turn([(fault, victim) for victim in victims])
        row.trials.extend(tried.trials)
        row.differences.extend(tried.differences)
        row = row._replace(
            events=row.events + tried.events, lost=row.lost + tried.lost, twice=row.twice + tried.twice
        )
        if len(tried.trials) < len(victims):
            return row
    return row


def _differences_of(fault: Fault, victim: str, trial: Trial) -> list[str]:
    found = []
    if not fault.ends_run:
        expected = {name.format(victim=victim) for name in fault.restarted}
        found += [f"{name} was not started anew" for name in sorted(expected - trial.restarted)]
        found += [f"{name} was started anew" for name in sorted(trial.restarted - expected)]
    if fault.reason not in trial.reason:
        found.append(f"the reason is {trial.reason!r}, without {fault.reason!r}")
    return found


_HEAD = """\
# Every way to fail

One app, {victims} sole owners (the victims) under a supervisor `{ops}` and a shared actor (the bystander)
beside it, all of them handling all of {rate} events a second, each of which takes a victim
{milliseconds:g} ms. Each event's publish is confirmed, and each handler run is recorded when it begins. Each
fault is made {runs} times, each time to a victim that nothing has happened to in this run before.
`make faults` makes this page.

{date}, {cores} cores, Linux {kernel}, Python {python}, understudy {understudy}, nats-server
{server}, nats-py {nats}, Thespian {thespian}; made by
`{command}`.

The app's settings are low, so that what waits for a timeout doesn't wait long: `hang_timeout_seconds`
{hang:g}, `start_timeout_seconds` {start:g}, `ack_wait_seconds` {ack_wait:g}, `concurrency` {concurrency}
with {keys} keys. `max_restarts` is {max_restarts} in {max_seconds:g} s and `max_crashes` {max_crashes}:
how a tree gives up is not shown here.

- **Started anew** and **Not**: whose process was another one afterwards and whose was the same, every time.
- **Median**, **Worst**: milliseconds from the fault to the victim's next event, the time in which it was
  stopped or suspended included; where the whole run ends by design, from the next start of the command.
- **Lost**: events that an actor never handled. **Twice**: handler runs that repeated another one, over all
  {actors} actors and all runs. A process that dies repeats what was in its handlers, at most {concurrency}
  events; an attempt that failed is repeated; a broker that goes away takes acks along that were on their
  way. Any other repeat, or an event out of order of its key, makes the command fail.

| What happens | Started anew | By | Not | Reason, in log and tree | Median | Worst | Lost | Twice |
|---|---|---|---|---|--:|--:|--:|--:|
"""

_NOTES = """
A process that the kernel kills because memory has run out ends by SIGKILL. Nothing is started anew from a
launcher whose control plane has died: the run ends with status 70, nobody is left, and the service manager's
next start takes over what the dead run held.

`python -m support.random_faults --minutes 30`, in `tests/` with
[a clone's Python](../CONTRIBUTING.md#set-up), makes such faults at random, one every two seconds, and counts
events, processes, memory and descriptors; `--seed` repeats a choice of them.
"""


def render(rows: Sequence[Row], runs: int, command: str, server: str) -> str:
    """Return the page."""
    head = _HEAD.format(
        victims=len(VICTIMS),
        ops=OPS,
        rate=EVENTS_PER_SECOND,
        runs=runs,
        date=datetime.now(UTC).date(),
        cores=os.cpu_count(),
        kernel=platform.release(),
        python=platform.python_version(),
        understudy=version("understudy"),
        server=server,
        nats=version("nats-py"),
        thespian=version("thespian"),
        command=command,
        hang=fault_app.HANG_TIMEOUT_SECONDS,
        start=fault_app.START_TIMEOUT_SECONDS,
        ack_wait=fault_app.ACK_WAIT_SECONDS,
        concurrency=CONCURRENCY,
        keys=KEYS,
        milliseconds=fault_app.VICTIM_SECONDS * 1000,
        max_restarts=fault_app.MAX_RESTARTS,
        max_seconds=fault_app.MAX_SECONDS,
        max_crashes=fault_app.MAX_CRASHES,
        actors=len(VICTIMS) + 1,
    )
    return head + "".join(_render_row(row) for row in rows) + _NOTES


def _server_version() -> str:
    answer = subprocess.run([find_nats_server(), "--version"], capture_output=True, text=True, check=True)
    return answer.stdout.strip().rpartition("v")[2]


def _render_row(row: Row) -> str:
    fault, trials = row.fault, row.trials
    milliseconds = [trial.milliseconds for trial in trials]
    cells = (
        fault.what,
        *_who(fault),
        _reason(row),
        *((f"{statistics.median(milliseconds):,.0f}", f"{max(milliseconds):,.0f}") if trials else ("", "")),
        f"{row.lost:,}",
        f"{row.twice:,}",
    )
    return f"| {' | '.join(cells)} |\n"


def _who(fault: Fault) -> tuple[str, str, str]:
    """Who is started anew, by whom, and who isn't."""
    above = "root, admin, logger, launcher"
    if fault.ends_run:
        return "everything, by the next start", "whoever starts it", "nothing"
    if OPS in fault.restarted:
        return f"`{OPS}` and all its victims", "root", f"{BYSTANDER}, {above}"
    if fault.restarted:
        return "the victim", f"`{OPS}`", f"the other victims, {BYSTANDER}, `{OPS}`, {above}"
    return "nobody", "", f"all victims, {BYSTANDER}, `{OPS}`, {above}"


def _reason(row: Row) -> str:
    if row.fault.reason in ("", "root supervisor", "admin", "logger"):
        return f"control plane died: {row.fault.reason}" if row.fault.reason else ""
    return row.trials[-1].reason if row.trials else ""


def main(arguments: list[str] | None = None) -> int:
    """Make the table as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m support.fault_table",
        description="Make every failure happen under load, and tabulate what comes of it. "
        "20 runs of each take about half an hour.",
    )
    parser.add_argument("--runs", type=int, default=20, help="how often each failure is made (20)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the page there, not on stdout")
    parser.add_argument("--only", default="", metavar="TEXT", help="only failures whose name has this text")
    options = parser.parse_args(arguments)
    faults = [fault for fault in FAULTS if options.only in fault.what]
    if not faults or options.runs < 1:
        parser.error("that leaves nothing to do")
    if options.write and options.only:
        parser.error("--write wants all failures")
    end_with_all()
    configure_logging(level="error", format="console", context={})
    rows = []
    for fault in faults:
        print(f"{fault.what} …", file=sys.stderr, flush=True)
        began = time.monotonic()
        row = try_often(fault, options.runs)
        rows.append(row)
        print(f"{time.monotonic() - began:6.1f} s  {_render_row(row).strip()}", file=sys.stderr, flush=True)
        for difference in row.differences:
            print(f"          {difference}", file=sys.stderr, flush=True)
    command = shlex.join(
        ["python", "-m", "support.fault_table", *(sys.argv[1:] if arguments is None else arguments)]
    )
    page = render(rows, options.runs, command, _server_version())
    if options.write:
        options.write.parent.mkdir(exist_ok=True)
        options.write.write_text(page)
    else:
        print(page, end="")
    return 1 if any(row.lost or row.differences for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
