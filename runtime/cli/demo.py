"""`understudy demo`: real flights through supervised actors, an outage, kill -9, every count checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from understudy.runtime.cli.demo_report import Report


def demo(
    kill_at: Annotated[
        str,
        typer.Option(metavar="FRACTION|random", help="After which part of the departures cells are killed."),
    ] = "0.5",
    flights: Annotated[
        int | None,
        typer.Option(
            min=500,
            metavar="NUMBER",
            help="Take only the first so many departures.",
            show_default="all 27,004",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave log, ledger and stream behind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Work through every flight that left New York in January 2013, whatever goes wrong on the way.

    Example: understudy demo --kill-at random

    Starts a nats-server, an HTTP service and a tree of actors, all on loopback and in a directory of their
    own. The service goes down for a while, gives the rebookings trouble, and a cell of each actor is killed.
    At the end every count is compared with the file: those in the actor's states, those in the stream, and
    those in the ledger of the service, which must have sent each notice once. Every rebooking must be
    complete, or compensated, in that ledger too. The exit status is 0 if all are right, and 1 if one isn't,
    which is then named.
    """
    fraction = read_fraction(kill_at)
    # Loaded when the command runs: --help needs none of it.
    from understudy.runtime.cli.demo_report import print_json, print_tables

    report = _perform(fraction, flights, keep=keep)
    (print_json if as_json else print_tables)(report)
    return 1 if report.wrong else 0


def read_fraction(value: str) -> float:
    """Return the moment that --kill-at names, as a part of the departures.

    Raises:
        typer.BadParameter: it is neither a number from 0 to 1 nor 'random'.
    """
    import random

    if value == "random":
        return random.random()
    try:
        fraction = float(value)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise typer.BadParameter(
            f"{value!r} is neither a number from 0 to 1 nor 'random'", param_hint="--kill-at"
        )
    return fraction


def _perform(kill_at: float, flights: int | None, *, keep: bool) -> Report:
    import asyncio
    import signal
    import time

    from understudy.examples.flights.departures import read_departures
    from understudy.examples.flights.settlement import very_late
    from understudy.examples.flights.tally import expected
    from understudy.runtime.cli.demo_evidence import gather
    from understudy.runtime.cli.demo_processes import STOP_TIMEOUT_SECONDS, open_stage, stop_process
    from understudy.runtime.cli.demo_report import Report
    from understudy.runtime.cli.demo_scenario import Scenario
    from understudy.runtime.cli.demo_screen import Screen
    from understudy.runtime.telemetry.logs import configure_logging, resolve_format

    # What our own connection has to say of a broker that dies, the error that ends us says too.
    configure_logging(level="error", format=resolve_format("auto"), context={})
    # Ended by a signal we still stop what we started, as for Ctrl-C; which a shell without job control has
    # its background commands ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    departures = list(read_departures(flights))
    with Screen(len(departures)) as screen, open_stage(screen.say, keep=keep) as stage:
        began = time.monotonic()
        stage.wait_until_ready()
        screen.say(f"the actors are up after {time.monotonic() - began:.1f} s: {', '.join(stage.cells())}")
        screen.start_bars()
        scenario = Scenario(stage, departures, kill_at=kill_at, audience=screen)
        asyncio.run(scenario.run())
        began = time.monotonic()
        exit_code = stop_process(stage.runtime, STOP_TIMEOUT_SECONDS)
        stop_seconds = time.monotonic() - began
        screen.say(f"the actors have stopped after {stop_seconds:.1f} s, exit code {exit_code}")
        report = Report(
            right=expected(departures),
            due=very_late(departures),
            evidence=gather(stage),
            observed=scenario.observed,
            exit_code=exit_code,
            stop_seconds=stop_seconds,
        )
        stage.keep = stage.keep or bool(report.wrong)
    return report
