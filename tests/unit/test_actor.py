"""Actors: names, options, keys and routing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from understudy.actors.actor import Actor
from understudy.actors.errors import DeclarationError, DecodeError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.options import ActorOptions, make_options
from understudy.actors.policies import Batch, CircuitBreaker, Mailbox
from understudy.actors.state import State
from understudy.actors.supervision import Child


class Departed(Event, subject="flights.departed"):
    carrier: str
    delay_minutes: float


class Tally(State):
    count: int = 0


def options(**given: object) -> ActorOptions:
    return make_options(given, "actor A")


def test_the_name_is_the_class_name_in_kebab_case() -> None:
    class DelayMonitor(Actor):
        pass

    class HTTPNotifier2(Actor):
        pass

    assert DelayMonitor.__understudy__.name == "delay-monitor"
    assert HTTPNotifier2.__understudy__.name == "http-notifier2"


def test_the_defaults_are_the_documented_ones() -> None:
    found = options()
    assert (found.concurrency, found.ordered, found.replicas, found.on_failure) == (1, False, 1, "redeliver")
    assert (found.handler_timeout_seconds, found.hang_timeout_seconds) == (30.0, 8.0)
    assert (found.start_timeout_seconds, found.ack_wait_seconds) == (30.0, 15.0)
    assert (found.durable, found.stream, found.start, found.key) == (None, None, "all", None)
    assert (found.double_ack, found.state, found.is_sole_owner) == (False, None, False)
    assert found.mailbox == Mailbox(capacity=1024, max_bytes=64 * 1024 * 1024)


def test_what_keeps_an_order_has_other_defaults() -> None:
    keyed, ordered = options(key="carrier"), options(ordered=True)
    assert (keyed.concurrency, keyed.on_failure, keyed.is_sole_owner) == (16, "block", True)
    assert (ordered.concurrency, ordered.on_failure, ordered.is_sole_owner) == (1, "block", True)
    assert options(key="carrier", on_failure="redeliver").on_failure == "redeliver"


def test_what_waits_for_a_state_may_be_more() -> None:
    assert options(state=Tally).mailbox == Mailbox(capacity=4096)
    assert options(state=Tally, mailbox=Mailbox(capacity=7)).mailbox == Mailbox(capacity=7)


def test_state_makes_a_sole_owner_but_keeps_no_order() -> None:
    stateful = options(state=Tally)
    assert (stateful.concurrency, stateful.on_failure, stateful.is_sole_owner) == (1, "redeliver", True)


@pytest.mark.parametrize("given", [{"key": "carrier"}, {"ordered": True}, {"state": Tally}])
def test_a_sole_owner_may_have_standbys(given: dict[str, object]) -> None:
    found = options(**given, replicas=2)
    assert (found.replicas, found.is_sole_owner) == (2, True)


def test_options_are_inherited_and_their_defaults_worked_out_anew() -> None:
    class Parent(Actor, key="carrier", mailbox=Mailbox(capacity=7)):
        pass

    class Plain(Parent, key=None):
        pass

    class Both(Plain, replicas=3):
        pass

    assert Plain.__understudy__.options.mailbox.capacity == 7
    assert (Plain.__understudy__.options.concurrency, Plain.__understudy__.options.on_failure) == (
        1,
        "redeliver",
    )
    assert Both.__understudy__.options.replicas == 3
    assert Parent.__understudy__.options.replace(key=None) == Plain.__understudy__.options


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"mailbx": 1}, "unknown option 'mailbx'; did you mean 'mailbox'?"),
        ({"concurrency": 0}, "concurrency is 0; give an integer of 1 or more"),
        ({"mailbox": 10}, "mailbox is 10; give a Mailbox"),
        ({"ordered": 1}, "ordered is 1; give a bool"),
        ({"state": "Tally"}, "state is 'Tally'; give a subclass of State"),
        ({"state": list[int]}, "state is list[int]; give a subclass of State"),
        (
            {"state": Tally, "concurrency": 2},
            "without key all events share one state and are handled one at a time, but concurrency is 2; "
            "give a key, or remove concurrency",
        ),
        ({"double_ack": "yes"}, "double_ack is 'yes'; give a bool"),
        ({"key": 3}, "key is 3; give an attribute's name or a callable"),
        ({"key": "a.b"}, "key is 'a.b'; give an attribute's name or a callable"),
        ({"on_failure": "stop"}, "on_failure is 'stop'; use 'redeliver' or 'block'"),
        ({"start": "time"}, "start is 'time'; use 'all' or 'new'"),
        ({"ack_wait_seconds": -1}, "ack_wait_seconds is -1; give a finite number of seconds above 0"),
        ({"breakers": "payments"}, "breakers is 'payments'; give a list of CircuitBreaker"),
        (
            {"breakers": [CircuitBreaker("a"), CircuitBreaker("a")]},
            "two breakers are called 'a'; rename one",
        ),
        (
            {"durable": "a.b"},
            "durable: the name is 'a.b'; use 1 to 64 of the characters A-Z, a-z, 0-9, '_' and '-'",
        ),
        (
            {"hang_timeout_seconds": 10},
            "hang_timeout_seconds is 10, but must be below two thirds of ack_wait_seconds (15.0); "
            "lower it or raise ack_wait_seconds",
        ),
        (
            {"ordered": True, "concurrency": 2},
            "ordered handles one event at a time, but concurrency is 2; remove one of them",
        ),
        (
            {"ordered": True, "key": "carrier"},
            "key and ordered exclude each other: ordered keeps the order of all events, "
            "key that of each key; remove one",
        ),
    ],
)
def test_a_wrong_option_is_named_with_what_is_right(given: dict[str, object], text: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        options(**given)
    assert str(caught.value) == f"actor A: {text}"


def test_an_unknown_class_keyword_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(DeclarationError) as caught:

        class Monitor(Actor, mailbx=1):  # type: ignore[call-arg]
            pass

    assert str(caught.value).endswith("Monitor: unknown option 'mailbx'; did you mean 'mailbox'?")


def test_a_key_must_be_a_field_of_every_typed_event() -> None:
    with pytest.raises(DeclarationError) as caught:

        class Monitor(Actor, key="carier"):
            @handles
            async def departed(self, event: Departed) -> None: ...

    assert str(caught.value).endswith(
        "Monitor: key is 'carier', but Departed, which departed takes, has no such field; "
        "did you mean 'carrier'?"
    )


def test_bytes_have_no_key_by_name() -> None:
    with pytest.raises(DeclarationError) as caught:

        class Monitor(Actor, key="carrier"):
            @handles("raw")
            async def raw(self, event: bytes) -> None: ...

    assert str(caught.value).endswith(
        "Monitor: raw takes bytes, which have no 'carrier'; give key a callable"
    )


def test_the_key_of_a_batch_is_that_of_its_events() -> None:
    with pytest.raises(DeclarationError) as caught:

        class Monitor(Actor, key="carier"):
            @handles(batch=Batch(size=10))
            async def departed(self, events: list[Departed]) -> None: ...

    assert str(caught.value).endswith(
        "Monitor: key is 'carier', but Departed, which departed takes, has no such field; "
        "did you mean 'carrier'?"
    )


def test_a_batch_must_fit_into_the_mailbox() -> None:
    """Where the class is made, and where a child overrides the mailbox."""

    class Monitor(Actor, mailbox=Mailbox(capacity=10)):
        @handles(batch=Batch(size=10))
        async def departed(self, events: list[Departed]) -> None: ...

    with pytest.raises(DeclarationError) as made:

        class Smaller(Monitor, mailbox=Mailbox(capacity=9)):
            pass

    with pytest.raises(DeclarationError) as overridden:
        Child(Monitor, mailbox=Mailbox(capacity=1))
    text = "departed takes batches of 10, but the mailbox holds {}; "
    remedy = "lower the batch's size or raise mailbox=Mailbox(capacity=…)"
    assert str(made.value).endswith("Smaller: " + text.format(9) + remedy)
    assert str(overridden.value).endswith("Monitor): " + text.format(1) + remedy)


def test_a_named_key_is_read_from_attributes_and_from_items() -> None:
    read = options(key="carrier").key_function()
    assert read is not None
    assert read(Departed(carrier="UA", delay_minutes=1)) == "UA"
    assert read({"carrier": "DL"}) == "DL"
    assert options().key_function() is None
    assert options(key=len).key_function() is len


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({}, "dict: 'carrier' can't be read as the actor's key: 'carrier'"),
        ({"carrier": []}, "dict: 'carrier' can't be read as the actor's key: unhashable type: 'list'"),
        (5, "int: 'carrier' can't be read as the actor's key: 'int' object has no attribute 'carrier'"),
    ],
)
def test_an_untyped_event_without_a_usable_key_does_not_decode(event: Any, text: str) -> None:
    read: Callable[[Any], object] | None = options(key="carrier").key_function()
    assert read is not None
    with pytest.raises(DecodeError) as caught:
        read(event)
    assert str(caught.value) == text


class Router(Actor):
    @handles("a.>")
    async def rest(self, event: bytes) -> None: ...
    @handles("a.*.c")
    async def star(self, event: bytes) -> None: ...
    @handles("a.b.c")
    async def literal(self, event: bytes) -> None: ...
    @handles("x.y")
    async def other(self, event: bytes) -> None: ...


@pytest.mark.parametrize(
    ("subject", "method"),
    [("a.b.c", "literal"), ("a.x.c", "star"), ("a.x", "rest"), ("a.b.c.d", "rest"), ("x.y", "other")],
)
def test_the_most_specific_subject_wins(subject: str, method: str) -> None:
    handler = Router.__understudy__.route(subject)
    assert handler is not None
    assert handler.method == method


def test_a_subject_without_a_handler_has_no_route() -> None:
    assert Router.__understudy__.route("y") is None


def test_the_consumer_asks_for_no_filter_that_another_covers() -> None:
    assert Router.__understudy__.filters == ("a.>", "x.y")


def test_hooks_take_what_they_are_called_with() -> None:
    """One that can't be called would fail at each start, for ever."""
    with pytest.raises(DeclarationError, match=r"actor .*Deaf: on_start is called as on_start\(ctx\)"):

        class Deaf(Actor):
            async def on_start(self) -> None: ...  # type: ignore[override]

            @handles
            async def departed(self, event: Departed) -> None: ...

    with pytest.raises(DeclarationError, match=r"write def on_stop\(self\)"):

        class Curious(Actor):
            def on_stop(self, reason: str) -> None: ...  # type: ignore[override]

            @handles
            async def departed(self, event: Departed) -> None: ...


def test_hooks_may_name_and_default_their_parameters_as_they_like() -> None:
    class Free(Actor):
        def on_start(self, *context: object) -> None: ...

        async def on_restart(self, why: str, again: bool = False) -> None: ...

        @staticmethod
        def on_stop() -> None: ...

        @handles
        async def departed(self, event: Departed) -> None: ...

    assert Free.__understudy__.name == "free"
