"""What is planned for a consumer, from what is declared and what the server has."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.subjects import covers
from understudy.runtime.jetstream.changes import Change, Step, refusals
from understudy.runtime.jetstream.consumers import find_left_over, plan_consumers, read_marks
from understudy.runtime.specs import AppSpec, ConsumerSpec, SupervisorSpec

ROOT = SupervisorSpec(name="root", strategy="one_for_one", max_restarts=3, max_seconds=5.0, children=())
CONSUMER = ConsumerSpec(
    durable="shop-billing",
    stream="ORDERS",
    filters=("orders.placed",),
    ack_wait_seconds=15.0,
    start="all",
    capacity=100,
    cells=1,
    actor="billing",
    sole_owner=False,
    specification="1111",
)
FILTERS = ("orders.placed", "orders.*", "orders.>", "orders.paid", "orders.eu.paid", "bills.>")


def app(revision: int = 0, name: str = "shop", **changes: Any) -> AppSpec:
    """Return an app of one consumer."""
    consumers = (msgspec.structs.replace(CONSUMER, **changes),)
    return AppSpec(name=name, revision=revision, streams=(), consumers=consumers, root=ROOT)


def described(spec: AppSpec, **config: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what the server says once it has what a spec declares, and has some fields changed."""
    (step,) = plan_consumers(spec, {})
    made = step.body["config"] | config
    consumer = spec.consumers[0]
    info = {"name": consumer.durable, "config": made, "num_pending": 2, "num_ack_pending": 1}
    return {(consumer.stream, consumer.durable): info}


def only(steps: list[Step]) -> Step:
    """Return the one step of a plan."""
    (step,) = steps
    return step


def test_what_is_as_declared_needs_nothing() -> None:
    """Also where the server has added to the metadata, or left out what is empty."""
    have = described(app())
    assert plan_consumers(app(), have) == []
    config = have["ORDERS", "shop-billing"]["config"]
    config["metadata"] |= {"_nats.ver": "2.15.1", "team": "payments"}
    for field in ("backoff", "headers_only", "deliver_subject"):
        del config[field]
    assert plan_consumers(app(), have) == []


def test_a_single_filter_may_be_told_in_the_older_way() -> None:
    """As `filter_subject`, which goes when the filters are written."""
    have = described(app(), filter_subject="orders.placed")
    del have["ORDERS", "shop-billing"]["config"]["filter_subjects"]
    assert plan_consumers(app(), have) == []
    step = only(plan_consumers(app(revision=1, filters=("orders.*",)), have))
    assert "filter_subject" not in step.body["config"]
    assert step.body["config"]["filter_subjects"] == ["orders.*"]


def test_an_update_keeps_what_is_not_declared() -> None:
    """An operator's pause or batch limit, and others' metadata; only our marks are written anew."""
    have = described(app(), max_batch=10, pause_until="2099-01-01T00:00:00Z")
    have["ORDERS", "shop-billing"]["config"]["metadata"] |= {"team": "payments", "understudy.gone": "x"}
    step = only(plan_consumers(app(revision=1), have))
    config = step.body["config"]
    assert (config["max_batch"], config["pause_until"]) == (10, "2099-01-01T00:00:00Z")
    assert config["metadata"] == {
        "team": "payments",
        "understudy.app": "shop",
        "understudy.actor": "billing",
        "understudy.revision": "1",
        "understudy.spec": "1111",
    }
    assert step.body["action"] == "update"


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"team": "x"},
        {"understudy.app": "shop"},
        {"understudy.app": "shop", "understudy.revision": "-"},
    ],
)
def test_marks_that_can_t_be_read_are_none(metadata: dict[str, str] | None) -> None:
    """Then the consumer is adopted, as one made before there were any."""
    assert read_marks({"config": {"metadata": metadata}}) is None
    step = only(plan_consumers(app(), described(app(), metadata=metadata)))
    assert [change.field for change in step.changes] == ["metadata"]
    assert refusals(step.changes, on_request=False) == []
    assert step.outdates


@given(st.integers(0, 3), st.integers(0, 3), st.booleans(), st.booleans())
def test_an_older_revision_sends_nothing(theirs: int, ours: int, owned: bool, other: bool) -> None:
    """Whatever differs; every other one sends what it declares, and then needs nothing more."""
    have = described(app(theirs, sole_owner=owned, ack_wait_seconds=20.0))
    spec = app(ours, sole_owner=owned != other, specification="2222")
    steps = plan_consumers(spec, have)
    if ours < theirs:
        (step,) = steps
        assert step.subject == ""
        assert bool(refusals(step.changes, on_request=True)) == other
    else:
        (step,) = steps
        assert step.outdates == (ours > theirs)
        assert refusals(step.changes, on_request=False) == []
        have["ORDERS", "shop-billing"]["config"] = step.body["config"]
        assert plan_consumers(spec, have) == []


@given(
    st.lists(st.sampled_from(FILTERS), min_size=1, unique=True),
    st.lists(st.sampled_from(FILTERS), min_size=1, unique=True),
)
def test_filters_change_unasked_only_where_nothing_is_left_out(before: list[str], after: list[str]) -> None:
    """Every subject that came before comes afterwards."""
    have = described(app(filters=tuple(before)))
    steps = plan_consumers(app(1, filters=tuple(after)), have)
    wider = all(any(covers(new, old) for new in after) for old in before)
    assert (refusals(only(steps).changes, on_request=False) == []) == wider
    assert refusals(only(steps).changes, on_request=True) == []


def test_the_same_revision_with_another_specification_is_told_so() -> None:
    """Not where the revision was raised, nor where somebody else has changed a field."""
    (change,) = only(plan_consumers(app(specification="2222"), described(app()))).changes
    assert (change.field, change.automatic, bool(change.remedy)) == ("specification", True, True)
    (change,) = only(plan_consumers(app(1, specification="2222"), described(app()))).changes
    assert (change.field, change.remedy) == ("revision", "")
    (change,) = only(plan_consumers(app(), described(app(), ack_wait=10**9))).changes
    assert (change.field, change.remedy) == ("ack_wait", "")


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, True),
        ({"start": "new"}, False),
        ({"filters": ("orders.paid",)}, False),
        ({"filters": ("orders.*",)}, True),
        ({"stream": "BILLS"}, False),
        ({"actor": "billing", "durable": "shop-billing-2"}, False),
        ({"actor": "billing", "durable": "shop-billing"}, True),
    ],
    ids=str,
)
def test_a_rename_is_what_would_handle_the_same_again(changes: dict[str, Any], refused: bool) -> None:
    """From the stream's start, on the same subjects, without having been asked for by another durable."""
    old = described(app(durable="old-name", actor=changes.get("actor", "former")))
    renamed = {"actor": "invoicing", "durable": "shop-invoicing"} | changes
    step = only(plan_consumers(app(1, **renamed), old))
    assert bool(refusals(step.changes, on_request=False)) == refused
    assert refusals(step.changes, on_request=True) == []
    assert step.body["action"] == "create"


def test_a_rename_with_its_durable_keeps_its_place() -> None:
    """Only the marks change."""
    step = only(plan_consumers(app(1, actor="invoicing"), described(app())))
    assert [change.field for change in step.changes] == ["actor", "revision"]
    # And a node of the older revision that restarts then goes on with it.
    step = only(plan_consumers(app(0), described(app(1, actor="invoicing"))))
    assert [(change.kind, change.field) for change in step.changes] == [
        ("kept", "revision"),
        ("kept", "actor"),
    ]


def test_left_over_is_what_the_app_has_made_and_declares_no_more() -> None:
    """With what it has before it; not what a newer revision or another app has made."""
    found = {
        **described(app(1, durable="shop-old", actor="old")),
        **described(app(3, durable="shop-newer", actor="newer")),
        **described(app(1, name="store", durable="store-old", actor="old")),
        **described(app(2)),
        ("ORDERS", "somebody-s"): {"config": {}, "name": "somebody-s"},
    }
    (left,) = find_left_over(app(2), found)
    assert (left.durable, left.actor, left.revision, left.pending) == ("shop-old", "old", 1, 3)


def test_refusals_say_what_to_do() -> None:
    """What is kept or automatic is none; a conflict is one even on request."""
    changes = [
        Change(kind="kept", resource="consumer a", field="ack_wait", have="1 s", want="2 s", automatic=False),
        Change(kind="update", resource="consumer b", field="ack_wait", have="1 s", want="2 s"),
        Change(kind="create", resource="consumer c", automatic=False, remedy="do this"),
        Change(kind="conflict", resource="consumer d", problem="is bad", remedy="do that"),
    ]
    assert refusals(changes, on_request=False) == [
        "consumer c does not exist; do this",
        "consumer d is bad; do that",
    ]
    assert refusals(changes, on_request=True) == ["consumer d is bad; do that"]
