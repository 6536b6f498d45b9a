"""`python -m benchmarks`: measure, print a table, and fail if a message is unaccounted for."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nats

from benchmarks.costs import find_table, write_table
from benchmarks.environment import describe_environment
from benchmarks.harness import Scenario, Stage, run_rounds
from benchmarks.progress import Progress
from benchmarks.report import Report, ScenarioReport
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.guarantees import Guarantees
from benchmarks.streams import delete_streams
from understudy import UnderstudyError
from understudy.actors.errors import ConfigurationError
from understudy.runtime.broker.embedded import EmbeddedServer

DIFFERENCE = 1
USAGE = 2
INTERRUPTED = 130

EPILOG = """\
scenarios, and about how long each takes ({quick} if none is named):
{scenarios}

All contenders of a scenario run in turn, each in processes of its own against one nats-server that is started
for this run, round after round; the table has medians, and ratios of medians. Progress goes to stderr. Who
needs what isn't installed is left out, and named. The method and its caveats are in benchmarks/README.md.

Each round has an order of its own. Each contender follows each other one equally often after as many rounds
as there are contenders, twice as many if their number is odd, and multiples of that; after any other number
of rounds some have followed some others once or twice more.

examples:
  make bench                                        what is quick; about six minutes
  make bench ARGS='--scenario all'                  everything
  make bench ARGS='--scenario drain --rounds 9'     one scenario, more rounds
  python -m benchmarks --messages 20000 --rounds 1  a quick look, whose ratios mean little
  python -m benchmarks --json bench.json            every sample, for a program to read
  python -m benchmarks --scenario guarantees --only 'state per key'
                                                    the first contender, and of the others this one

exit status: 0 all measured and every message accounted for; 1 a message lost or handled twice, or a process
that ended or stalled; 2 wrong usage, or no nats-server; 130 interrupted
"""
ALL = "all"
PICTURES = (".svg", ".png")


def main() -> int:
    """Measure what the command line asks for, and return the exit status."""
    options = _parse(sys.argv[1:])
    # Both end it in good order: directories are removed, and no process is left. As SIGINT, since asyncio
    # turns that into a cancellation; an exception out of nowhere is swallowed in a hook of a fork.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    directory = Path(tempfile.mkdtemp(prefix="understudy-bench-", dir=options.directory))
    try:
        server = EmbeddedServer.start(directory / "nats", join=False)
        try:
            report = asyncio.run(_measure(options, server, directory))
        finally:
            server.stop()
    except ConfigurationError as error:
        return _complain(error, USAGE)
    except UnderstudyError as error:
        return _complain(error, DIFFERENCE)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(report.table())
    if options.json is not None:
        options.json.write_text(json.dumps(report.plain(), indent=2) + "\n", encoding="utf-8")
    if options.page is not None:
        asked = [f"--rounds={options.rounds}", f"--messages={options.messages}"]
        asked += [f"--only={name}" for name in options.only or ()]
        write_table(report, options.page, shlex.join(asked))
    if options.plot is not None:
        # Heavy, and needed by nobody else.
        from benchmarks.plot import draw

        draw(report, options.plot)
    return 0


async def _measure(options: argparse.Namespace, server: EmbeddedServer, directory: Path) -> Report:
    # Ours, since it joined no other run's.
    assert server.pid is not None
    client = await nats.connect(server.url)
    try:
        environment = describe_environment(client, directory)
        progress = Progress()
        reports = []
        for scenario in _chosen(options.scenario):
            stage = Stage(
                url=server.url,
                broker_pid=server.pid,
                client=client,
                directory=directory,
                messages=scenario.size(options.messages),
                seconds=options.seconds,
                progress=progress,
            )
            measured = await run_rounds(scenario, stage, options.rounds, options.only)
            reports.append(
                ScenarioReport(
                    name=scenario.name,
                    description=scenario.description,
                    measures=scenario.measures,
                    goals=scenario.goals,
                    messages=stage.messages if scenario.one_size else 0,
                    series=measured.series,
                    left_out=measured.left_out,
                )
            )
            # Disks aren't endless.
            await delete_streams(client)
        return Report(environment=environment, rounds=options.rounds, scenarios=reports)
    finally:
        await client.close()


def _chosen(names: Sequence[str] | None) -> list[Scenario]:
    if not names:
        return [scenario for scenario in SCENARIOS if scenario.is_quick]
    return [scenario for scenario in SCENARIOS if ALL in names or scenario.name in names]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    described = "\n".join(
        f"  {scenario.name:14}{scenario.takes:>7}  {scenario.description}" for scenario in SCENARIOS
    )
    quick = ", ".join(scenario.name for scenario in SCENARIOS if scenario.is_quick)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure understudy beside what people write without it.",
        epilog=EPILOG.format(scenarios=described, quick=quick),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--scenario",
        action="append",
        choices=[ALL, *(scenario.name for scenario in SCENARIOS)],
        metavar="NAME",
        help=f"measure only this one, or {ALL}; may be given more than once",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="CONTENDER",
        help="of each scenario's contenders only the first and this one; may be given more than once",
    )
    parser.add_argument(
        "--rounds", type=_positive, default=5, help="runs of each contender, in orders as above (default: 5)"
    )
    parser.add_argument(
        "--messages", type=_positive, default=100_000, help="messages in one run (default: 100000)"
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=60,
        help="how long a run takes that is measured by time: latency, memory (default: 60)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there, too")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw a picture there, too: an .svg or a .png file"
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="put the table of what guarantees cost into this page, docs/guarantees.md, too",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        help="where the broker's store is made, and removed again (default: where temporary files go)",
    )
    options = parser.parse_args(arguments)
    _check(options, parser)
    return options


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End it now for what would fail after minutes of measuring."""
    if options.directory is not None and not os.access(options.directory, os.W_OK):
        parser.error(f"--directory: {options.directory} is no directory that can be written to")
    for option, path in (("--json", options.json), ("--plot", options.plot)):
        if path is not None:
            try:
                path.touch()
            except OSError as error:
                parser.error(f"{option}: {path} can't be written: {error.strerror}")
    _check_names(options, parser)
    if options.page is not None:
        if not any(isinstance(scenario, Guarantees) for scenario in _chosen(options.scenario)):
            parser.error(f"--page: give --scenario {Guarantees.name}, which measures what is in it")
        try:
            find_table(options.page)
        except (OSError, ValueError) as error:
            parser.error(f"--page: {options.page}: {error}")
    if options.plot is not None:
        if options.plot.suffix not in PICTURES:
            parser.error(f"--plot: {options.plot} is neither an .svg nor a .png file")
        if importlib.util.find_spec("matplotlib") is None:
            parser.error("--plot needs matplotlib: pip install 'understudy[bench]'")


def _check_names(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    contenders = {
        contender.name
        for scenario in _chosen(options.scenario)
        for contender in scenario.contenders(scenario.size(options.messages))
    }
    for name in options.only or ():
        if name not in contenders:
            known = ", ".join(sorted(map(repr, contenders)))
            parser.error(f"--only: nobody is called {name!r} there; there are {known}")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _complain(error: Exception, status: int) -> int:
    Progress().say(f"benchmarks: {error}")
    return status


if __name__ == "__main__":
    sys.exit(main())
