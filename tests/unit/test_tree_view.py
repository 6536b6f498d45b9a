"""A node's tree as text."""

from __future__ import annotations

import msgspec

from understudy.runtime.admin.nodes import Node, TreeReply
from understudy.runtime.cell.status import COUNTERS, BreakerStatus, CellStatus
from understudy.runtime.cli.tree_view import WIDTH, view
from understudy.runtime.supervision.statefile import ChildStatus, SupervisorStatus
from understudy.runtime.supervision.tree import Cell, Supervisor

NODE = Node(app="shop", run_id="0123456789abcdef", host="web-1", pid=4711, revision=3, version="0.1.0")


def child(name: str, **fields: object) -> ChildStatus:
    """Return what a supervisor says of a child."""
    defaults = {
        "kind": "cell",
        "state": "up",
        "pid": 1,
        "start_ticks": 1,
        "generation": 1,
        "restarts": 0,
        "last_reason": "",
        "crashed": False,
        "cell_file": "",
    }
    return ChildStatus(name=name, **(defaults | fields))  # type: ignore[arg-type]


def cell(name: str, state: str = "up", reason: str = "", pause: str = "none", **fields: object) -> Cell:
    """Return a cell."""
    status = CellStatus(
        pid=1,
        state=state,
        reason=reason,
        heartbeat=1.0,
        control_heartbeat=1.0,
        connected=True,
        pause=pause,
        held=12,
        capacity=64,
        counters=dict.fromkeys(COUNTERS, 0) | {"handled": 1_234_567, "failed": 89, "dead_lettered": 7},
    )
    return Cell(name=name, supervision=child(name, **fields), status=status)


def supervisor(name: str, *children: Cell | Supervisor, supervision: ChildStatus | None = None) -> Supervisor:
    """Return a supervisor that is up."""
    status = SupervisorStatus(
        name=name,
        pid=1,
        generation=2,
        state="up",
        reason="",
        heartbeat=1.0,
        not_drained=(),
        children=(),
    )
    return Supervisor(name=name, supervision=supervision, status=status, children=children)


def lines(root: Supervisor, columns: int | None = WIDTH, /, **not_ready: str) -> list[str]:
    """Return a node's lines."""
    reply = TreeReply(node=NODE, clock=100.0, not_ready=not_ready, tree=None)
    return list(view(reply, root, columns=columns))


SMALL = """\
shop on web-1:4711  run 0123456789abcdef  revision 3  ready
                                           STATE       GEN RESTARTS   HELD    HANDLED  FAILED   DEAD
shop                                       up            2        0
├─ ops                                     up            1        0
│  ├─ billing/0                            paused        2        1     12    1234567      89      7
│  │     paused by the operator
│  │     last ended: hang
│  └─ billing/1                            pausing       1        0     12    1234567      89      7
└─ mail/0                                  standby       1        0     12    1234567      89      7
      another cell is active
"""


def test_the_whole_of_a_small_node() -> None:
    """Who it is, then a line for each supervisor and cell, and beneath it why it is so and was restarted."""
    ops = supervisor(
        "ops",
        cell("billing/0", "paused", "paused by the operator", generation=2, restarts=1, last_reason="hang"),
        cell("billing/1", "up", pause="pausing"),
        supervision=child("ops", kind="supervisor"),
    )
    mail = cell("mail/0", "standby", "another cell is active")
    assert lines(supervisor("shop", ops, mail)) == SMALL.splitlines()


def test_a_cell_that_is_not_up_is_told_by_its_supervisor() -> None:
    """Its own last word is older."""
    root = supervisor("shop", cell("billing/0", "up", last_reason="killed"))
    assert "up " in lines(root)[3]
    waiting = Cell(
        name="billing/0",
        supervision=child(
            "billing/0",
            state="backoff",
            pid=None,
            last_reason="RuntimeError: no database",
            starts_at=102.5,
            failures=3,
        ),
        status=None,
    )
    shown = lines(supervisor("shop", waiting), **{"cell billing/0": "backoff"})
    assert shown[0].endswith("not ready")
    assert shown[1] == "  cell billing/0: backoff"
    assert shown[4].split() == ["└─", "billing/0", "backoff", "1", "0"]
    assert shown[5:] == [
        "      starts again in 2.5 s, after 3 failures in a row",
        "      last ended: RuntimeError: no database",
    ]


def test_a_breaker_that_is_not_closed_is_shown_with_since_when() -> None:
    """Beneath its cell, also while the cell goes on with the rest of its work."""
    busy = cell("billing/0")
    assert busy.status is not None
    breakers = (
        BreakerStatus(name="mail", state="closed"),
        BreakerStatus(name="payments", state="half-open", since=87.5),
    )
    busy = msgspec.structs.replace(busy, status=msgspec.structs.replace(busy.status, breakers=breakers))
    shown = lines(supervisor("shop", busy))
    assert shown[4:] == ["      circuit breaker payments: half-open, not closed for 12.5 s"]
    # Its supervisor knows that it is gone.
    gone = msgspec.structs.replace(busy, supervision=child("billing/0", state="backoff"))
    assert len(lines(supervisor("shop", gone))) == 4


def test_a_breaker_of_the_app_is_shown_once_with_what_it_holds_up() -> None:
    """At the top, where it belongs; nothing of it beneath the cells, which all know of it."""

    def knowing(name: str, *, holds_up: bool, state: str = "open", **fields: object) -> Cell:
        made = cell(name, **fields)  # type: ignore[arg-type]
        assert made.status is not None
        breaker = BreakerStatus(name="payments", state=state, since=87.5, of_app=True, holds_up=holds_up)
        return msgspec.structs.replace(made, status=msgspec.structs.replace(made.status, breakers=(breaker,)))

    root = supervisor(
        "shop",
        knowing("billing/0", holds_up=True),
        supervisor("ops", knowing("refunds/0", holds_up=True), supervision=child("ops", kind="supervisor")),
        knowing("mail/0", holds_up=False),
        # Its supervisor knows that it is gone.
        Cell(name="gone/0", supervision=child("gone/0", state="backoff"), status=None),
    )
    shown = lines(root)
    open_now = "│  circuit breaker payments: open, not closed for 12.5 s"
    assert shown[3] == f"{open_now}; holds up billing/0, refunds/0"
    assert len([line for line in shown if "circuit breaker" in line]) == 1
    closed = supervisor("shop", knowing("billing/0", holds_up=False, state="closed"))
    assert not any("circuit breaker" in line for line in lines(closed))
    idle = supervisor("shop", knowing("billing/0", holds_up=False))
    assert lines(idle)[3] == open_now


LONG = """\
shop on web-1:4711  run 0123456789abcdef  revision 3  not ready
  cell billing/0: the consumer shop-billing of the stream ORDERS is ahead of this app's revision 3;
    raise App(revision=…), or stop the other
                                           STATE       GEN RESTARTS   HELD    HANDLED  FAILED   DEAD
shop                                       up            2        0
├─ billing/0                               halted        1        0     12    1234567      89      7
│     the consumer shop-billing of the stream ORDERS is ahead of this app's revision 3; raise
│       App(revision=…), or stop the other
│     last ended: hang
└─ mail/0                                  up            1        0     12    1234567      89      7
"""


def test_a_long_reason_is_wrapped_beneath_its_row() -> None:
    """With the tree's lines left of it, so that what to do about it is there too; whole where it is piped."""
    reason = (
        "the consumer shop-billing of the stream ORDERS is ahead of this app's revision 3; "
        "raise App(revision=…), or stop the other"
    )
    root = supervisor("shop", cell("billing/0", "halted", reason, last_reason="hang"), cell("mail/0"))
    why = {"cell billing/0": reason}
    assert lines(root, **why) == LONG.splitlines()
    assert [line.strip(" │") for line in lines(root, None, **why) if reason in line] == [
        f"cell billing/0: {reason}",
        reason,
    ]
    # A terminal that is no wider than the margin doesn't tear words into letters.
    assert "│     the consumer shop-billing of the stream" in lines(root, 8, **why)


def test_nothing_is_wider_than_a_terminal() -> None:
    """Long names are cut, a word wider than a line is broken, and a reason of several lines is one."""
    reason = "ValueError: " + "no\nsuch " * 40
    root = supervisor("s" * 200, cell("c" * 200, "halted", reason, last_reason=reason))
    shown = lines(root, part="x" * 200)
    assert max(map(len, shown)) <= WIDTH == 100
    assert not any("\n" in line for line in shown)
    assert not any("\n" in line for line in lines(root, None))
