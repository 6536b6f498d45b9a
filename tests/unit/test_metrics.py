"""What the collector makes of the files of a run, and that docs/metrics.md says the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import httpx
import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from support.metrics import Scrape
from understudy.runtime.admin.metrics import Metrics
from understudy.runtime.admin.probes import build_routes
from understudy.runtime.cell.cellfile import CellFile, Identity
from understudy.runtime.cell.counts import CALL_OUTCOMES
from understudy.runtime.cell.status import BreakerStatus, CellState
from understudy.runtime.specs import AppSpec, ConsumerSpec, StreamSpec, SupervisorSpec
from understudy.runtime.supervision.statefile import Cause, ChildStatus, SupervisorStatus, write_state
from understudy.runtime.supervision.tree import Supervisor, read_tree

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def child(name: str, **fields: object) -> ChildStatus:
    """Return a child that is up, but for these fields."""
    actor, _, index = name.partition("/")
    defaults: dict[str, object] = {
        "kind": "cell" if index else "supervisor",
        "state": "up",
        "pid": 7,
        "start_ticks": 0,
        "generation": 1,
        "restarts": 0,
        "last_reason": "",
        "crashed": False,
        "cell_file": f"{actor}.{index}.1.cell" if index else "",
    }
    return ChildStatus(name=name, **(defaults | fields))  # type: ignore[arg-type]


def supervisor(name: str, *children: ChildStatus) -> SupervisorStatus:
    """Return a supervisor that is up."""
    return SupervisorStatus(
        name=name,
        pid=1,
        generation=1,
        state="up",
        reason="",
        heartbeat=0.0,
        not_drained=(),
        children=children,
    )


def consumer(actor: str, cells: int = 1, *, is_saga: bool = False) -> ConsumerSpec:
    """Return an actor's consumer."""
    return ConsumerSpec(
        durable=f"shop-{actor}",
        stream="ORDERS",
        filters=(),
        ack_wait_seconds=30.0,
        start="all",
        capacity=8,
        cells=cells,
        actor=actor,
        sole_owner=False,
        has_state=is_saga,
        is_saga=is_saga,
        specification="",
    )


class Shop:
    """A run of two actors, one of them with two cells, whose files tests write."""

    is_draining = False
    drain_seconds = 0.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pending = {"billing": 3}
        self.problems: dict[str, str] = {}
        self.app = AppSpec(
            name="shop",
            revision=0,
            streams=(StreamSpec(name="ORDERS", subjects=("orders.>",), timers=True),),
            consumers=(consumer("billing", 2, is_saga=True), consumer("mailer")),
            root=SupervisorSpec(
                name="root", strategy="one_for_one", max_restarts=5, max_seconds=60.0, children=()
            ),
        )
        self.children(child("billing/0"), child("billing/1"), child("mailer/0"))

    def children(self, *cells: ChildStatus, **fields: object) -> None:
        """Have the supervisor `ops`, below the root, say this of its cells; of itself these fields."""
        write_state(self.directory, supervisor("root", child("ops", **fields)))
        write_state(self.directory, supervisor("ops", *cells))

    def cell(self, name: str, generation: int = 1) -> CellFile:
        """Begin a generation of a cell."""
        actor, _, index = name.partition("/")
        identity = Identity(
            app="shop",
            actor=actor,
            cell=name,
            durable=f"shop-{actor}",
            stream="ORDERS",
            boot_id="boot",
            run_id="run",
            generation=generation,
        )
        path = self.directory / f"{actor}.{index}.{generation}.cell"
        file = CellFile.create(path, identity, 8)
        file.status.state(CellState.UP)
        return file

    def not_alive(self) -> dict[str, str]:
        return {}

    def not_ready(self) -> dict[str, str]:
        return self.problems

    def tree(self) -> Supervisor:
        return read_tree(self.directory, "root")

    def metrics(self, accept: str = "") -> tuple[bytes, str]:
        return Metrics(self.app, self.directory, self, get_args(Cause), lambda: self.pending).render(accept)

    def scrape(self) -> Scrape:
        return Scrape(self.metrics()[0].decode())


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """A run in a folder of its own."""
    return Shop(tmp_path)  # type: ignore[return-value]


def test_a_run_that_has_done_nothing_shows_all_counters_at_zero(shop: Shop) -> None:
    """So that the first of each is an increase."""
    counters = shop.scrape().counters()
    assert set(counters.values()) == {0}
    outcomes = [dict(labels)["outcome"] for name, labels in counters if name == "understudy_deliveries_total"]
    assert len(outcomes) == 2 * 7
    assert shop.scrape().total("understudy_ready") == 1
    shop.problems = {"cell billing/0": "starting"}
    assert shop.scrape().total("understudy_ready") == 0


def test_it_answers_before_anything_has_started(shop: Shop) -> None:
    """A broker that doesn't come is seen by that the node isn't ready."""
    for path in shop.directory.iterdir():
        path.unlink()
    shop.problems = {"supervisor root": "not started yet"}
    now = shop.scrape()
    assert now.total("understudy_ready") == 0
    assert now.total("understudy_deliveries_total", actor="billing") == 0
    assert not now.has("understudy_cell_up")


def test_an_actors_numbers_are_those_of_all_its_cells_and_generations(shop: Shop) -> None:
    """A drained cell's file is gone, another's belongs to a dead process; what they counted stays."""
    first = shop.cell("billing/0")
    first.status.counts.count("handled", 5)
    first.status.counts.observe("lag", 0.3)
    first.remove()
    shop.cell("billing/0", generation=2).status.counts.count("handled", 2)
    other = shop.cell("billing/1")
    other.status.counts.count("handled", 1)
    other.status.counts.observe("lag", 400.0)
    now = shop.scrape()
    assert now.total("understudy_deliveries_total", actor="billing", outcome="handled") == 8
    assert now.total("understudy_deliveries_total", actor="billing") == 8
    assert now.total("understudy_deliveries_total", actor="mailer") == 0
    assert now.total("understudy_lag_seconds_count", actor="billing") == 2
    assert now.total("understudy_lag_seconds_sum", actor="billing") == pytest.approx(400.3)
    assert now.total("understudy_lag_seconds_bucket", actor="billing", le="0.25") == 0
    assert now.total("understudy_lag_seconds_bucket", actor="billing", le="0.5") == 1
    assert now.total("understudy_lag_seconds_bucket", actor="billing", le="300") == 1
    assert now.total("understudy_lag_seconds_bucket", actor="billing", le="+Inf") == 2


def test_only_what_is_a_saga_has_sagas(shop: Shop) -> None:
    """In each of their phases, which its help names, from zero on."""
    shop.cell("billing/0").status.counts.count("saga_stuck")
    now = shop.scrape()
    (sagas,) = (family for family in now.families if family.name == "understudy_sagas")
    phases = list(dict.fromkeys(sample.labels["phase"] for sample in sagas.samples))
    assert sagas.documentation == f"Sagas that have come to a phase: {', '.join(phases)}."
    assert len(phases) == 6
    assert now.total("understudy_sagas_total", phase="stuck") == 1
    assert now.has("understudy_sagas_total", actor="billing", phase="completed")
    assert not now.has("understudy_sagas_total", actor="mailer")


def test_asks_and_timers_are_told_by_what_came_of_them(shop: Shop) -> None:
    """Of all cells of an actor together; no timers where no stream has any."""
    for cell in ("billing/0", "billing/1"):
        counts = shop.cell(cell).status.counts
        counts.count("asks", 3)
        counts.count("asks_answered", 2)
        counts.count("asks_timeout")
        counts.count("timers_set", 4)
        counts.count("timers_fired")
    now = shop.scrape()
    assert now.total("understudy_asks_total", actor="billing") == 6
    assert now.total("understudy_ask_outcomes_total", actor="billing", outcome="answered") == 4
    assert now.total("understudy_ask_outcomes_total", outcome="timeout") == 2
    assert now.total("understudy_ask_outcomes_total", outcome="rejected") == 0
    assert now.total("understudy_timers_total", actor="billing", phase="set") == 8
    assert now.total("understudy_timers_total", phase="fired") == 2
    assert now.has("understudy_timers_total", actor="mailer", phase="cancelled")
    shop.app = msgspec.structs.replace(shop.app, streams=())
    assert not shop.scrape().has("understudy_timers_total")


def test_restarts_are_told_of_what_runs_and_of_what_ended(shop: Shop) -> None:
    """By actor and by supervisor, with their reasons."""
    shop.children(
        child("billing/0", restarts_by={"signal": 2, "operator": 1}),
        child("billing/1", restarts_by={"signal": 3}, state="stopped", pid=None),
        restarts_by={"hang": 1},
    )
    now = shop.scrape()
    assert now.total("understudy_restarts_total", actor="billing", reason="signal") == 5
    assert now.total("understudy_restarts_total", actor="billing", reason="operator") == 1
    assert now.total("understudy_restarts_total", actor="mailer") == 0
    assert now.total("understudy_supervisor_restarts_total", supervisor="ops", reason="hang") == 1


def test_gauges_are_of_processes_that_run(shop: Shop) -> None:
    """A cell that waits to be started again is down and says nothing; of one that ended there is nothing."""
    for name in ("billing/0", "billing/1", "mailer/0"):
        shop.cell(name).status.gauge("held", 4)
    shop.children(
        child("billing/0"),
        child("billing/1", state="backoff", pid=None),
        child("mailer/0", state="stopped", pid=None),
    )
    now = shop.scrape()
    up = {
        dict(labels)["cell"]: value for (name, labels), value in now.samples.items() if name.endswith("_up")
    }
    assert up == {"billing/0": 1, "billing/1": 0}
    assert now.total("understudy_mailbox_messages") == 4
    assert now.total("understudy_cell_state", cell="billing/0") == 1
    assert now.total("understudy_cell_state", cell="billing/0", state="up") == 1
    assert not now.has("understudy_heartbeat_age_seconds", cell="billing/1")
    assert not now.has("understudy_cell_state", cell="mailer/0")


def test_a_breaker_is_in_one_state_and_its_calls_outlive_its_cell(shop: Shop) -> None:
    """Half-open is written as in a label."""
    for generation in (1, 2):
        file = shop.cell("mailer/0", generation)
        for outcome in CALL_OUTCOMES:
            file.status.counts.called("smtp", outcome)
    file.status.breakers([BreakerStatus(name="smtp", state="half-open", since=1.0)])
    shop.children(child("mailer/0", cell_file="mailer.0.2.cell"))
    now = shop.scrape()
    assert now.total("understudy_breaker_state", breaker="smtp", state="half_open") == 1
    assert now.total("understudy_breaker_state", breaker="smtp") == 1
    calls = [
        now.total("understudy_breaker_calls_total", breaker="smtp", outcome=outcome)
        for outcome in CALL_OUTCOMES
    ]
    assert calls == [2] * 5


def test_what_waits_is_told_where_it_is_known(shop: Shop) -> None:
    """An actor whose consumer nobody could ask has no series, rather than an old one."""
    assert shop.scrape().total("understudy_consumer_pending_messages", actor="billing") == 3
    assert not shop.scrape().has("understudy_consumer_pending_messages", actor="mailer")


async def test_it_is_served_as_text_and_as_openmetrics(shop: Shop) -> None:
    """What the request asks for, whole and parsed."""
    shop.cell("billing/0").status.counts.observe("handling", 0.002)
    transport = httpx.ASGITransport(app=build_routes(shop, "127.0.0.1"))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        text = await client.get("/metrics")
        asked = {"Accept": "application/openmetrics-text; version=1.0.0, text/plain;q=0.5"}
        openmetrics = await client.get("/metrics", headers=asked)
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.text.endswith("# EOF\n")
    families = list(parse_openmetrics(openmetrics.text))  # type: ignore[no-untyped-call]
    asked_for = {
        (sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples
    }
    assert asked_for == set(Scrape(text.text).samples)


def everything(shop: Shop) -> Scrape:
    """Have every kind of series, and scrape."""
    shop.cell("billing/0").status.breakers([BreakerStatus(name="smtp", state="closed")])
    shop.cell("mailer/0").status.counts.called("smtp", "success")
    return shop.scrape()


def test_every_metric_is_in_the_document_with_type_and_labels(shop: Shop) -> None:
    """And the document tells of no other."""
    exposed = {}
    for family in everything(shop).families:
        labels = {label for sample in family.samples for label in sample.labels} - {"app", "le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        exposed[name] = (family.type, labels)
    rows = re.findall(r"^\| `(understudy_\w+)` \| (\w+) \| ([\w, ]*) ?\|", DOCUMENT.read_text(), re.MULTILINE)
    told = {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows}
    assert told == exposed


def test_the_values_of_labels_are_in_the_document(shop: Shop) -> None:
    """All that may ever be exposed, and no other."""
    rows = re.findall(r"^\| (\w+) \| `(understudy_\w+)` \| ([\w, ]+) \|", DOCUMENT.read_text(), re.MULTILINE)
    told = {(metric, label): values.strip().split(", ") for label, metric, values in rows}
    exposed: dict[tuple[str, str], list[str]] = {key: [] for key in told}
    for name, labels in everything(shop).samples:
        for label, value in labels:
            values = exposed.get((name, label))
            if values is not None and value not in values:
                values.append(value)
    assert told == exposed


def test_all_series_tell_the_app_and_only_gauges_the_cell(shop: Shop) -> None:
    """A cell's counters would be lost to sums over time when its number of replicas changes."""
    now = everything(shop)
    assert all(dict(labels)["app"] == "shop" for _, labels in now.samples)
    assert not [labels for _, labels in now.counters() if "cell" in dict(labels)]
