"""Faults at random while events are handled, and an account of every event, process, byte, descriptor, line.

`python -m support.random_faults --minutes 30`, in tests/. A victim's process, all of them with their
supervisor, the whole tree's time or the broker is hit every two seconds; launcher, control plane and the
bystander have to live through it. Progress goes to stderr, the account as JSON to stdout; the exit status
is 1 if it doesn't add up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from support import fault_app
from support.account import Kill, Stage, is_outage
from support.fault_app import BYSTANDER, OPS, VICTIMS, Moment
from support.faults import (
    EVENTS_PER_SECOND,
    PASSWORD,
    RECOVERY_SECONDS,
    TOKEN,
    Scene,
    end_with_all,
    kill_broker,
    kill_cell,
    kill_supervisor,
    restart_broker,
    stop_cell,
    stop_cell_briefly,
    suspend_all,
)
from support.log_check import LogAccount, check_log
from support.streams import count_messages
from support.tree import wait_until
from understudy.runtime.telemetry.logs import configure_logging

EVERY_SECONDS = 2.0
# Before the first and after the last fault: what is loaded or opened once is then there, and what was held
# back by a fault is handled.
WARM_UP_SECONDS = 5.0
LOOK_SECONDS = 0.05
LOOKS = 5
SETTLE_SECONDS = 10.0
# Thespian keeps a connection to a neighbour, or makes another when it needs one.
SPARE_DESCRIPTORS = 1
# What memory may differ by: Python's allocator keeps what was in use at the worst moment.
GROWTH = 1.1
DEADLY = frozenset({"segfault", "exit", "block", "hold the GIL", "stick"})
SURVIVORS = ("launcher", "admin", "logger", "root", f"{BYSTANDER}/0")

Hit = Callable[[Scene, str], object]


class _Fault(NamedTuple):
    """Something that may happen, how often against others, and how the reasons begin of what ends by it."""

    what: str
    weight: int
    hit: Hit
    reasons: tuple[str, ...]


def _arm(deed: str) -> Hit:
    return lambda scene, victim: scene.arm(victim, "handler", deed)


def _arm_and_kill(moment: Moment, deed: str) -> Hit:
    def hit(scene: Scene, victim: str) -> None:
        scene.arm(victim, moment, deed)
        kill_cell(scene, victim)

    return hit


KILLED = "killed by SIGKILL"
EXITED = f"exit status {fault_app.EXIT_STATUS}"
FAILED = "RuntimeError: no database"
OF_A_VICTIM = (
    _Fault("SIGKILL", 6, kill_cell, (KILLED,)),
    _Fault("SIGSEGV", 3, _arm("segfault"), ("killed by SIGSEGV",)),
    _Fault("exit", 3, _arm("exit"), (EXITED,)),
    _Fault("MemoryError", 2, _arm("want memory"), ()),
    _Fault("blocked event loop", 2, _arm("block"), ("hang: ",)),
    _Fault("GIL kept", 2, _arm("hold the GIL"), ("hang: ",)),
    _Fault("main thread stuck", 2, _arm("stick"), ("hang: ",)),
    _Fault("SIGSTOP", 2, stop_cell, ("hang: ",)),
    _Fault("SIGSTOP and SIGCONT", 2, stop_cell_briefly, ()),
    _Fault("exception in on_start", 2, _arm_and_kill("start", "raise"), (KILLED, FAILED)),
    _Fault("on_start never ends", 1, _arm_and_kill("start", "never end"), (KILLED, "not up within ")),
    _Fault("exit in __init__", 2, _arm_and_kill("init", "exit"), (KILLED, EXITED)),
)
OF_ALL = (
    _Fault("supervisor killed", 2, kill_supervisor, (KILLED,)),
    _Fault("everything suspended", 1, suspend_all, ()),
    _Fault("broker killed", 1, kill_broker, ()),
    _Fault("broker restarted", 1, restart_broker, ()),
)
FAULTS = (*OF_A_VICTIM, *OF_ALL)


class Use(msgspec.Struct, kw_only=True):
    """What a process takes.

    Args:
        rss_kib: its memory in KiB, all that it shares with its siblings included.
        pss_kib: its share. That grows without a leak: a page that one of them writes is shared no more.
        descriptors: how many are open.
    """

    rss_kib: int
    pss_kib: int
    descriptors: int


class Account(msgspec.Struct, kw_only=True):
    """What a run of random faults has shown.

    Args:
        seed: of the choice what hits whom when.
        seconds: how long faults were made.
        settings: the app's, as far as they say how long and how often something is tried again.
        faults: how many of each.
        ends: of processes, by reason, but for cells that could not start while the broker was away.
        unexpected_ends: reasons that came more often than the faults explain.
        started_anew: who should have kept its process, and didn't.
        events: that were published.
        stages: by actor.
        dead_letters: that were written.
        before, after: what each process took; of victims, which are new processes, the one that took most.
        files_before, files_after: how many there were in the run's directory.
        exit_status: the run's.
        files_left: in the run's directory at the end.
        log: what each line of the log is.
    """

    seed: int
    seconds: float
    settings: dict[str, float]
    faults: dict[str, int]
    ends: dict[str, int]
    unexpected_ends: dict[str, int]
    started_anew: list[str]
    events: int
    stages: dict[str, Stage]
    dead_letters: int
    before: dict[str, Use]
    after: dict[str, Use]
    files_before: int
    files_after: int
    exit_status: int
    files_left: list[str]
    log: LogAccount

    def differences(self) -> list[str]:
        """Return what is not as it must be."""
        found = [
            f"{count} more cells ended than should: {end}" for end, count in self.unexpected_ends.items()
        ]
        found += [f"{name} was started anew" for name in self.started_anew]
        for name, stage in self.stages.items():
            found += [f"{name}: {difference}" for difference in stage.differences()]
        if self.dead_letters:
            found.append(f"{self.dead_letters} dead letters")
        for name, before in self.before.items():
            after = self.after[name]
            if after.rss_kib > before.rss_kib * GROWTH:
                found.append(f"{name} took {before.rss_kib} KiB, and now {after.rss_kib}")
            if after.descriptors > before.descriptors + SPARE_DESCRIPTORS:
                found.append(f"{name} had {before.descriptors} descriptors, and now {after.descriptors}")
        if self.files_after > self.files_before:
            found.append(f"{self.files_before} files in the run's directory, and now {self.files_after}")
        if self.exit_status:
            found.append(f"exit status {self.exit_status}")
        found += [f"left behind: {path}" for path in self.files_left]
        found += [f"log: {problem}" for problem in self.log.problems]
        return found


class _Storm:
    """The faults of one run."""

    def __init__(self, scene: Scene, seed: int, progress: bool) -> None:
        self.faults = Counter[str]()
        self._scene = scene
        self._random = random.Random(seed)
        self._progress = progress

    def rage(self, seconds: float) -> None:
        """Make a fault every two seconds, or later if the one before takes longer."""
        began = time.monotonic()
        due = began
        while due < began + seconds:
            # The rate is what is asked for.
            time.sleep(max(0.0, due - time.monotonic()))
            (fault,) = self._random.choices(FAULTS, [fault.weight for fault in FAULTS])
            victim = self._random.choice(self._free_victims()) if fault in OF_A_VICTIM else VICTIMS[0]
            if fault.hit is kill_supervisor:
                wait_until(self._has_supervisor, RECOVERY_SECONDS, f"{OPS} up")
            self._say(time.monotonic() - began, fault.what if fault in OF_ALL else f"{fault.what}: {victim}")
            fault.hit(self._scene, victim)
            self.faults[fault.what] += 1
            due = max(due + EVERY_SECONDS, time.monotonic())

    def deadly_deeds(self) -> list[Kill]:
        """Return which processes of the victims died, or hung, in a handler, and when."""
        deeds = (deed for victim in VICTIMS for deed in self._scene.deeds(victim))
        return [Kill(deed.pid, deed.at) for deed in deeds if deed.what in DEADLY]

    def _free_victims(self) -> list[str]:
        """Return the victims that are up and that nothing is happening to, once there are any."""

        def free() -> list[str]:
            doomed = {kill.pid for kill in (*self._scene.kills, *self.deadly_deeds())}
            children = {victim: self._scene.run.child(f"{victim}/0") for victim in VICTIMS}
            return [
                victim
                for victim, child in children.items()
                if child["state"] == "up" and child["pid"] not in doomed and not self._scene.is_armed(victim)
            ]

        found: list[str] = wait_until(free, RECOVERY_SECONDS, "a victim that is well")
        return found

    def _has_supervisor(self) -> bool:
        return bool(self._scene.run.child(OPS)["state"] == "up")

    def _say(self, seconds: float, what: str) -> None:
        if self._progress:
            published = self._scene.load.published
            print(f"{seconds:6.1f} s  {published} published  {what}", file=sys.stderr, flush=True)


def storm(directory: Path, *, seconds: float, seed: int, progress: bool = False) -> Account:
    """Make faults at random for so long, and count.

    Call it in the main thread.

    Args:
        directory: an empty one, for the run's files.
        seconds: how long faults are made.
        seed: of the choice what hits whom.
        progress: whether stderr is told each fault.
    """
    with Scene(directory) as scene:
        work = _Storm(scene, seed, progress)
        run = scene.run
        scene.wait_until_handled()
        # Python keeps the memory of the worst moment, and that is what comes at once after these.
        for hit in (restart_broker, kill_broker, suspend_all):
            hit(scene, VICTIMS[0])
            scene.wait_until_handled()
        time.sleep(WARM_UP_SECONDS)
        processes, before, files_before = scene.processes(), _uses(scene), _count_files(run.runs)
        began = time.monotonic()
        work.rage(seconds)
        seconds = time.monotonic() - began
        wait_until(scene.is_ready, RECOVERY_SECONDS, "ready")
        scene.wait_until_handled()
        time.sleep(WARM_UP_SECONDS)
        now, after = scene.processes(), _uses(scene, before)
        files_after = _count_files(run.runs, files_before)
        scene.kills += work.deadly_deeds()
        stages, status = scene.finish()
        ends = Counter(
            str(entry["reason"])
            for entry in run.log()
            if entry["event"] in ("cell exited", "supervisor exited")
            and not is_outage(scene.outages, entry["time"])
        )
        with run.log_path.open("rb") as log:
            log_account = check_log(log, [PASSWORD, TOKEN])
        return Account(
            seed=seed,
            seconds=round(seconds, 1),
            settings=_settings(),
            faults=dict(work.faults),
            ends=dict(_without_numbers(ends)),
            unexpected_ends=_unexpected(ends, work.faults),
            started_anew=[name for name in SURVIVORS if processes[name] != now[name]],
            events=scene.load.published,
            stages=stages,
            dead_letters=count_messages(scene.server.url, "FAULTS_DEAD_LETTERS"),
            before=before,
            after=after,
            files_before=files_before,
            files_after=files_after,
            exit_status=status,
            files_left=[str(path) for path in run.runs.rglob("*") if not path.is_dir()],
            log=log_account,
        )


def _settings() -> dict[str, float]:
    return {
        "events_per_second": EVENTS_PER_SECOND,
        "fault_every_seconds": EVERY_SECONDS,
        "max_restarts": fault_app.MAX_RESTARTS,
        "max_seconds": fault_app.MAX_SECONDS,
        "max_crashes": fault_app.MAX_CRASHES,
        "hang_timeout_seconds": fault_app.HANG_TIMEOUT_SECONDS,
        "start_timeout_seconds": fault_app.START_TIMEOUT_SECONDS,
        "ack_wait_seconds": fault_app.ACK_WAIT_SECONDS,
    }


def _without_numbers(ends: Counter[str]) -> Counter[str]:
    """Put together what differs only in how long it took."""
    merged = Counter[str]()
    for reason, count in ends.items():
        merged[re.sub(r"\d+\.\d+ s", "… s", reason)] += count
    return merged


def _unexpected(ends: Counter[str], faults: Counter[str]) -> dict[str, int]:
    """Return reasons by how many more there were than faults that lead to them."""
    explained = Counter[str]()
    for fault in FAULTS:
        for reason in fault.reasons:
            explained[reason] += faults[fault.what]
    seen = Counter[str]()
    for reason, count in ends.items():
        seen[next((known for known in explained if reason.startswith(known)), reason)] += count
    return dict(seen - explained)


def _uses(scene: Scene, before: dict[str, Use] | None = None) -> dict[str, Use]:
    """Return what the processes take; what is open for longer than before must be open for long."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        uses = _look(scene)
        if before is None or time.monotonic() > deadline:
            return uses
        if all(use.descriptors <= before[name].descriptors + SPARE_DESCRIPTORS for name, use in uses.items()):
            return uses


def _look(scene: Scene) -> dict[str, Use]:
    uses = {name: _use(pid) for name, pid in scene.processes().items()}
    victims = [uses.pop(f"{victim}/0") for victim in VICTIMS]
    most = Use(
        rss_kib=max(use.rss_kib for use in victims),
        pss_kib=max(use.pss_kib for use in victims),
        descriptors=max(use.descriptors for use in victims),
    )
    return {**uses, "victims": most}


def _use(pid: int) -> Use:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rss, pss = (
        int(kib)
        for name in ("Rss", "Pss")
        for kib in re.findall(rf"^{name}:\s+(\d+) kB$", rollup, re.MULTILINE)
    )
    return Use(rss_kib=rss, pss_kib=pss, descriptors=min(_count_descriptors(pid) for _ in range(LOOKS)))


def _count_descriptors(pid: int) -> int:
    # A file that is just being read, or our own question that is just answered, is soon closed.
    time.sleep(LOOK_SECONDS)
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _count_files(directory: Path, most: int | None = None) -> int:
    """Return how many files there are; more than there may be must be there for long."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        # One that is just being replaced has two names.
        count = min(_look_for_files(directory) for _ in range(LOOKS))
        if most is None or count <= most or time.monotonic() > deadline:
            return count


def _look_for_files(directory: Path) -> int:
    time.sleep(LOOK_SECONDS)
    return sum(not path.is_dir() for path in directory.rglob("*"))


def main(arguments: list[str] | None = None) -> int:
    """Make faults as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m support.random_faults",
        description="Make a fault every two seconds, at random and under load, and count what it costs.",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), help="told in the account")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="leave log, records and store there")
    options = parser.parse_args(arguments)
    end_with_all()
    configure_logging(level="error", format="console", context={})
    with contextlib.ExitStack() as stack:
        directory = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        account = storm(directory, seconds=60 * options.minutes, seed=options.seed, progress=True)
    differences = account.differences()
    result: dict[str, Any] = {**msgspec.to_builtins(account), "differences": differences}
    print(json.dumps(result, indent=2))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
