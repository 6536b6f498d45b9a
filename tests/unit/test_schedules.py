"""What a delayed event goes out as, and what can't be delayed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from nats.aio.client import ServerVersion

from understudy.actors.errors import DeclarationError, EncodeError
from understudy.runtime.jetstream.schedules import Timers, too_old
from understudy.runtime.stream import Stream

ORDERS = Stream("ORDERS", subjects=["orders.>"], timers=True, max_age_seconds=3600)
PLAIN = Stream("PLAIN", subjects=["plain.>"])
NOON = 1_790_251_200.0


def timers() -> Timers:
    """The timers of an actor that plans only."""
    client: Any = SimpleNamespace()
    return Timers(client, [PLAIN.spec, ORDERS.spec], "shop-billing")


def test_an_event_is_kept_under_a_subject_of_its_timer_until_it_is_due() -> None:
    subject, headers = timers().plan("orders.due", 0.5, "reminder-42", NOON)
    assert subject == "timers.ORDERS.at.shop-billing.reminder-42"
    assert headers == [
        ("Nats-Schedule", "@at 2026-09-24T12:00:00.500000Z"),
        ("Nats-Schedule-Target", "orders.due"),
    ]


def test_a_name_that_is_no_token_has_one_made_of_it() -> None:
    subjects = {
        timers().plan("orders.due", 1, name, NOON)[0] for name in ("a.b", "a b", "a*", "é", "x" * 200)
    }
    assert len(subjects) == 5
    assert all(subject.rpartition(".")[2].startswith("=") for subject in subjects)
    assert all(subject.count(".") == 4 for subject in subjects)


@pytest.mark.parametrize(
    ("subject", "delay_seconds", "message"),
    [
        (
            "plain.due",
            1.0,
            "an event for 'plain.due' can't be delayed: no stream of the app that holds it has timers; "
            "declare it as Stream(…, timers=True)",
        ),
        (
            "orders.due",
            3600.0,
            "an event for 'orders.due' can't be delayed by 3600 s: stream ORDERS drops what is older than "
            "its max_age_seconds (3600), schedules too",
        ),
    ],
)
def test_what_no_stream_would_keep_is_refused(subject: str, delay_seconds: float, message: str) -> None:
    with pytest.raises(EncodeError) as caught:
        timers().plan(subject, delay_seconds, "t", NOON)
    assert str(caught.value) == message


def test_a_target_that_is_more_than_a_subject_is_refused() -> None:
    with pytest.raises(EncodeError):
        timers().plan("orders.due\r\nNats-Schedule-TTL: 1s", 1.0, "t", NOON)


def test_beyond_the_calendar_is_refused() -> None:
    forever: Any = SimpleNamespace()
    stream = Stream("ORDERS", subjects=["orders.>"], timers=True).spec
    with pytest.raises(EncodeError) as caught:
        Timers(forever, [stream], "d").plan("orders.due", 1e12, "t", NOON)
    assert str(caught.value) == "delay_seconds is 1e+12, beyond the year 9999"


def test_a_stream_with_timers_holds_their_subjects_too() -> None:
    assert ORDERS.spec.subjects == ("orders.>", "timers.ORDERS.>")
    assert PLAIN.spec.subjects == ("plain.>",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timers": 1}, "stream 'O': timers is 1; give True or False"),
        (
            {"timers": True, "retention": "interest"},
            "stream 'O': retention is 'interest', where the server keeps no schedules; use another, or leave "
            "out timers=True",
        ),
        (
            {"timers": True, "subjects": [">"]},
            "stream 'O': the subjects '>' and 'timers.O.>' overlap; keep one of them",
        ),
    ],
)
def test_timers_that_no_stream_can_have_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        Stream("O", **({"subjects": ["o.>"]} | options))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("version", "old"), [("2.11.9", "2.11.9"), ("2.12.0", ""), ("2.15.1", ""), ("3.0.0", "")]
)
def test_schedules_come_with_server_2_12(version: str, old: str) -> None:
    client: Any = SimpleNamespace(connected_server_version=ServerVersion(version))
    assert too_old(client).replace("<nats server v", "").rstrip(">") == old
