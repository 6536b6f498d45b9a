"""What the launcher logs of the streams and consumers at its start."""

from __future__ import annotations

from structlog.testing import capture_logs

from understudy.runtime.jetstream.changes import Change, Topology
from understudy.runtime.jetstream.topology_report import report_topology


def test_what_was_changed_is_logged_and_a_remedy_is_a_warning() -> None:
    """One entry for each change."""
    resource = "consumer shop-billing"
    changes = (
        Change(kind="create", resource="stream ORDERS"),
        Change(kind="update", resource=resource, field="ack_wait", have="1 s", want="2 s"),
        Change(
            kind="update",
            resource=resource,
            field="specification",
            have="1",
            want="2",
            remedy="raise revision=",
        ),
    )
    with capture_logs() as logs:
        report_topology(Topology(changes=changes))
    assert logs == [
        {"event": "topology changed", "log_level": "info", "change": "stream ORDERS created"},
        {
            "event": "topology changed",
            "log_level": "info",
            "change": f"{resource}: ack_wait changed from 1 s to 2 s",
        },
        {
            "event": "topology changed",
            "log_level": "warning",
            "change": f"{resource}: specification changed from 1 to 2",
            "remedy": "raise revision=",
        },
    ]


def test_what_a_newer_revision_has_made_is_one_warning() -> None:
    """With all that differs."""
    kept = [
        Change(kind="kept", resource="consumer a", field="revision", have="2", want="1", remedy="left"),
        Change(kind="kept", resource="stream B", field="max_age", have="1 s", want="2 s"),
    ]
    with capture_logs() as logs:
        report_topology(Topology(changes=tuple(kept)))
    assert logs == [
        {
            "event": "a newer revision is deployed; left as it is",
            "log_level": "warning",
            "differences": [
                "consumer a: revision is 2, the app declares 1",
                "stream B: max_age is 1 s, the app declares 2 s",
            ],
        }
    ]
