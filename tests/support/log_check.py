"""Every line of a run's log is an entry with its fields, and none shows a secret.

`python -m support.log_check FILE… --secret hunter2`, in tests/. The account goes to stdout as JSON; the exit
status is 1 if a line isn't as it must be. What a user's code writes to stderr by itself isn't for this.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

LEVELS = ("debug", "info", "warning", "error", "critical")
# While a delivery is handled an entry has all of these, else none but what it says itself.
OF_A_DELIVERY = ("trace_id", "span_id", "stream", "sequence", "subject", "attempt")
# And while a batch is; a traced one has the ids of its span too.
OF_A_BATCH = ("stream", "deliveries", "first_sequence", "last_sequence")
PATTERNS = {
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
    "node": r"[^:\s]+:\d+",
    "trace_id": r"[0-9a-f]{32}",
    "span_id": r"[0-9a-f]{16}",
}
EVERY_ENTRY = {"time": str, "level": str, "event": str, "app": str, "node": str, "logger": str, "pid": int}
MAX_SHOWN = 20


class LogAccount(msgspec.Struct, kw_only=True):
    """What was found in a log.

    Args:
        lines: how many there are.
        by_level: how many entries.
        of_deliveries: how many entries name one.
        suppressed: how many entries were counted and not written.
        processes: how many have written.
        problems: of the first lines that aren't as they must be, each with its line.
        problem_count: of all of them.
    """

    lines: int = 0
    by_level: dict[str, int] = msgspec.field(default_factory=dict)
    of_deliveries: int = 0
    suppressed: int = 0
    processes: int = 0
    problems: list[str] = msgspec.field(default_factory=list)
    problem_count: int = 0


def check_log(lines: Iterable[bytes], secrets: Iterable[str] = ()) -> LogAccount:
    """Return what is in a log.

    Args:
        lines: each with its end; the last may lack it if its writer was killed there.
        secrets: what must be nowhere in it.
    """
    account = LogAccount()
    levels, pids = Counter[str](), set[int]()
    hidden = [secret.encode() for secret in secrets]
    for number, line in enumerate(lines, 1):
        account.lines += 1
        found = [
            f"shows the secret that begins with {secret[:3].decode()}" for secret in hidden if secret in line
        ]
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            found += _problems(entry)
            levels[str(entry.get("level"))] += 1
            pids.add(entry.get("pid", 0))
            account.of_deliveries += "trace_id" in entry
            if entry.get("event") == "repeats were not logged":
                account.suppressed += entry["count"]
        else:
            found.append("is no JSON object")
        for problem in found:
            account.problem_count += 1
            if len(account.problems) < MAX_SHOWN:
                account.problems.append(f"line {number} {problem}: {line[:300].decode(errors='replace')}")
    account.by_level, account.processes = dict(levels), len(pids)
    return account


def _problems(entry: dict[str, Any]) -> Iterator[str]:
    for name, kind in EVERY_ENTRY.items():
        if not isinstance(entry.get(name), kind) or entry[name] == "":
            yield f"has no {name}"
    for name, pattern in PATTERNS.items():
        if name in entry and not re.fullmatch(pattern, str(entry[name])):
            yield f"has a wrong {name}"
    if entry.get("level") not in LEVELS:
        yield "has a wrong level"
    if "cell" in entry and not str(entry["cell"]).startswith(f"{entry.get('actor')}/"):
        yield "names a cell and not its actor"
    is_of_a_batch = "first_sequence" in entry
    expected = OF_A_BATCH if is_of_a_batch else OF_A_DELIVERY if "trace_id" in entry else ()
    if missing := [name for name in expected if name not in entry]:
        yield f"names a {'batch' if is_of_a_batch else 'delivery'} without its {', '.join(missing)}"
    if "log_failure" in entry:
        yield "could not be shown"


def main(arguments: list[str] | None = None) -> int:
    """Check as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m support.log_check",
        description="See that each line of a log is an entry with its fields, and shows no secret.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--secret", action="append", default=[], help="what must be nowhere in it")
    options = parser.parse_args(arguments)
    failed = False
    for path in options.files:
        with path.open("rb") as log:
            account = check_log(log, options.secret)
        print(json.dumps({"file": str(path), **msgspec.to_builtins(account)}, indent=2, ensure_ascii=False))
        failed = failed or account.problem_count > 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
