"""What the HTTP routes answer, and what they are asked for."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from understudy.actors.errors import ConfigurationError
from understudy.runtime.admin.port import check_port
from understudy.runtime.admin.probes import build_routes, is_loopback
from understudy.runtime.cell.cellfile import CellFile, Identity, boot_id
from understudy.runtime.cell.status import STATUS_OFFSET, CellState, boottime
from understudy.runtime.supervision.health import missing_parts, silent_supervisors
from understudy.runtime.supervision.statefile import (
    ChildState,
    ChildStatus,
    SupervisorState,
    SupervisorStatus,
    write_state,
)
from understudy.runtime.supervision.tree import read_tree


class Answers:
    """A launcher that answers what the test wants."""

    def __init__(self, not_alive: dict[str, str], not_ready: dict[str, str]) -> None:
        self._not_alive, self._not_ready = not_alive, not_ready

    def not_alive(self) -> dict[str, str]:
        return self._not_alive

    def not_ready(self) -> dict[str, str]:
        return self._not_ready

    def tree(self) -> object:
        return {"name": "root"}

    def metrics(self, accept: str) -> tuple[bytes, str]:
        return f"as {accept}".encode(), "text/plain"


async def get(app: Starlette, path: str, host: str = "127.0.0.1:8400", method: str = "GET") -> httpx.Response:
    """Ask the application without a socket."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return await client.request(method, path, headers={"Host": host})


async def test_all_is_well() -> None:
    """Three times 200, and nothing named."""
    app = build_routes(Answers({}, {}), "127.0.0.1")
    answers = [await get(app, path) for path in ("/livez", "/readyz", "/healthz")]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [answer.json() for answer in answers] == [
        {"alive": True, "failing": {}},
        {"ready": True, "failing": {}},
        {"healthy": True, "not_alive": {}, "not_ready": {}},
    ]


async def test_the_root_names_every_page() -> None:
    """And each that is named is there, for HEAD too, as some probes ask; so says what isn't there."""
    app = build_routes(Answers({}, {}), "127.0.0.1")
    index = await get(app, "/")
    pages = index.json()["pages"]
    assert (index.status_code, sorted(pages)) == (
        200,
        ["/api/tree", "/healthz", "/livez", "/metrics", "/readyz"],
    )
    for path in ("/", *pages):
        assert [(await get(app, path, method=method)).status_code for method in ("GET", "HEAD")] == [200, 200]
    unknown = await get(app, "/ready")
    assert (unknown.status_code, unknown.json()) == (404, {"error": "there is no /ready", "pages": pages})


async def test_a_probe_that_fails_fails_for_head_too() -> None:
    """Which has nothing but the status."""
    app = build_routes(Answers({}, {"broker": "disconnected"}), "127.0.0.1")
    assert (await get(app, "/readyz", method="HEAD")).status_code == 503


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_nothing_is_changed_over_http(method: str) -> None:
    """405, with what is allowed instead."""
    app = build_routes(Answers({}, {}), "127.0.0.1")
    answer = await get(app, "/api/tree", method=method)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert answer.json() == {"error": f"/api/tree is only for reading, not {method}"}


async def test_what_fails_is_named() -> None:
    """Liveness doesn't follow readiness."""
    app = build_routes(Answers({}, {"broker": "disconnected"}), "127.0.0.1")
    answers = [await get(app, path) for path in ("/livez", "/readyz", "/healthz")]
    assert [answer.status_code for answer in answers] == [200, 503, 503]
    assert answers[1].json() == {"ready": False, "failing": {"broker": "disconnected"}}
    assert answers[2].json() == {"healthy": False, "not_alive": {}, "not_ready": {"broker": "disconnected"}}


@pytest.mark.parametrize(
    ("bound", "named", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8400", 200),
        ("127.0.0.1", "localhost:8400", 200),
        ("localhost", "localhost", 200),
        ("::1", "[::1]:8400", 200),
        ("127.0.0.1", "evil.example:8400", 403),
        ("127.0.0.1", "127.0.0.1.evil.example", 403),
        ("0.0.0.0", "127.0.0.1:8400", 403),
        ("10.0.0.1", "10.0.0.1:8400", 403),
    ],
)
async def test_the_tree_is_told_on_loopback_to_loopback(bound: str, named: str, status: int) -> None:
    """Off loopback it waits for tokens."""
    assert (await get(build_routes(Answers({}, {}), bound), "/api/tree", named)).status_code == status


@pytest.mark.parametrize(
    ("bound", "named", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8400", 200),
        ("127.0.0.1", "evil.example:8400", 403),
        ("0.0.0.0", "10.1.2.3:8400", 200),
    ],
)
async def test_metrics_are_scraped_under_any_name_off_loopback(bound: str, named: str, status: int) -> None:
    """Where only this machine may ask, no page under another name gets them in a browser."""
    answer = await get(build_routes(Answers({}, {}), bound), "/metrics", named)
    assert answer.status_code == status
    assert (answer.text == "as */*") is (status == 200)


async def test_a_probe_may_come_under_any_name() -> None:
    """A kubelet names the pod's address."""
    assert (await get(build_routes(Answers({}, {}), "0.0.0.0"), "/readyz", "10.1.2.3")).status_code == 200


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.9.9.9", True), ("::1", True), ("example.org", False), (None, False)]
)
def test_what_is_loopback(host: str | None, *, loopback: bool) -> None:
    """By address, never by what a name may resolve to."""
    assert is_loopback(host) is loopback


def test_a_port_in_use_is_named_with_the_remedy() -> None:
    """And a free one stays free."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError) as raised:
            check_port("127.0.0.1", port)
    assert str(raised.value) == (
        f"http.port: 127.0.0.1:{port} can't be used (Address already in use); "
        "end what listens there, choose another port (--http-port), or let any free one be taken "
        "(--http-port 0)"
    )
    check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "reason"),
    [("192.0.2.1", "Cannot assign requested address)"), ("a..b", "")],
)
def test_a_foreign_address_is_refused_with_the_remedy(host: str, reason: str) -> None:
    """The host is at fault, not the port; one belongs to a network for documentation, one is no name."""
    with pytest.raises(ConfigurationError) as raised:
        check_port(host, 0)
    text = str(raised.value)
    assert text.startswith(f"http.host: {host!r} is no address of this machine ({reason}")
    assert text.endswith(
        "; name one that is in http.host (UNDERSTUDY_HTTP__HOST): 127.0.0.1 answers this machine only, "
        "0.0.0.0 on all of its addresses"
    )


def child(name: str, state: ChildState = "up", reason: str = "") -> ChildStatus:
    """Return a cell, or a supervisor if the name has no index."""
    actor, _, index = name.partition("/")
    return ChildStatus(
        name=name,
        kind="cell" if index else "supervisor",
        state=state,
        pid=1,
        start_ticks=0,
        generation=1,
        restarts=0,
        last_reason=reason,
        crashed=False,
        cell_file=f"{actor}.{index}.1.cell" if index else "",
    )


def supervise(
    directory: Path, name: str, *children: ChildStatus, state: SupervisorState = "up", silent: float = 0.0
) -> None:
    """Write a supervisor's view."""
    write_state(
        directory,
        SupervisorStatus(
            name=name,
            pid=1,
            generation=1,
            state=state,
            reason="",
            heartbeat=boottime() - silent,
            not_drained=(),
            children=children,
        ),
    )


def cell(
    directory: Path,
    name: str,
    state: CellState,
    reason: str = "",
    *,
    connected: bool = True,
    silent: float = 0.0,
) -> None:
    """Write a cell file."""
    actor, index = name.split("/")
    identity = Identity(
        app="app",
        actor=actor,
        cell=name,
        durable="d",
        stream="S",
        boot_id=boot_id(),
        run_id="run",
        generation=1,
    )
    path = directory / f"{actor}.{index}.1.cell"
    file = CellFile.create(path, identity, 4)
    file.status.gauge("connected", int(connected))
    file.status.state(state, reason)
    with path.open("r+b") as written:
        written.seek(STATUS_OFFSET)
        written.write(struct.pack("<d", boottime() - silent))


def test_a_tree_that_is_up_misses_nothing(tmp_path: Path) -> None:
    """A cell that holds back for an open breaker is at work."""
    supervise(tmp_path, "root", child("a/0"), child("ops"))
    supervise(tmp_path, "ops", child("b/0"))
    cell(tmp_path, "a/0", CellState.UP)
    cell(tmp_path, "b/0", CellState.PAUSED, "circuit breaker payments is open")
    assert missing_parts(read_tree(tmp_path, "root")) == {}


def test_what_is_missing_is_named_with_why(tmp_path: Path) -> None:
    """Backoff, a lost connection, a pause that is no breaker's, no sign of life, a supervisor that starts."""
    supervise(
        tmp_path,
        "root",
        child("a/0", "backoff", "killed by SIGSEGV"),
        child("b/0"),
        child("c/0"),
        child("d/0"),
        child("ops"),
    )
    supervise(tmp_path, "ops", state="starting")
    cell(tmp_path, "b/0", CellState.UP, connected=False)
    cell(tmp_path, "c/0", CellState.HALTED, "too many deliveries in a row can't be read")
    cell(tmp_path, "d/0", CellState.UP, silent=7.0)
    assert missing_parts(read_tree(tmp_path, "root")) == {
        "supervisor ops": "starting",
        "cell a/0": "backoff (killed by SIGSEGV)",
        "cell b/0": "not connected to the broker",
        "cell c/0": "halted: too many deliveries in a row can't be read",
        "cell d/0": "silent for 7 s",
    }


def test_what_ended_for_good_is_missed_by_nobody(tmp_path: Path) -> None:
    """A cell that stopped itself, and a temporary supervisor that was killed, whose last view says `up`."""
    supervise(tmp_path, "root", child("a/0"), child("done/0", "stopped"), child("gone", "stopped"))
    supervise(tmp_path, "gone", child("b/0"), child("below"), silent=60.0)
    supervise(tmp_path, "below", child("c/0"), silent=60.0)
    cell(tmp_path, "a/0", CellState.UP)
    cell(tmp_path, "b/0", CellState.UP, connected=False)
    tree = read_tree(tmp_path, "root")
    assert missing_parts(tree) == {}
    assert silent_supervisors(tree) == {}


def test_before_the_root_has_begun_nothing_is_ready_and_nothing_is_dead(tmp_path: Path) -> None:
    """Its first file comes with its first child."""
    tree = read_tree(tmp_path, "root")
    assert missing_parts(tree) == {"supervisor root": "not started yet"}
    assert silent_supervisors(tree) == {}


def test_a_supervisor_is_silent_only_while_it_should_speak(tmp_path: Path) -> None:
    """One that is being restarted isn't."""
    supervise(tmp_path, "root", child("hung"), child("gone", "backoff"))
    supervise(tmp_path, "hung", silent=60.0)
    supervise(tmp_path, "gone", silent=60.0)
    tree = read_tree(tmp_path, "root")
    assert silent_supervisors(tree) == {"supervisor hung": "silent for 60 s"}
    assert missing_parts(tree) == {"supervisor hung": "silent for 60 s", "supervisor gone": "backoff"}
