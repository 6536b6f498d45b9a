"""What a saga declares, and what a wrong declaration is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from understudy.actors.errors import DeclarationError, DecodeError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import RetryPolicy
from understudy.actors.saga import Saga, SagaContext, Signal, starts
from understudy.actors.saga_position import PlannedStep
from understudy.actors.saga_step import NO_COMPENSATION, Step
from understudy.actors.state import State


class Delayed(Event, subject="flights.delayed"):
    booking: str
    minutes: int


class Charge(Event, subject="payments.charge"):
    booking: str


class Charged(Event, subject="payments.charged"):
    booking: str


class Declined(Event, subject="payments.declined"):
    order: str


class Booking(State):
    seat: str = ""


class Rebooking(Saga, key="booking", state=Booking, retry=RetryPolicy(max_attempts=3)):
    @starts
    async def delayed(self, event: Delayed) -> Booking | None:
        return Booking() if event.minutes > 120 else None

    async def reserve(self, ctx: SagaContext[Booking]) -> None:
        ctx.state.seat = "12A"

    async def release(self, ctx: SagaContext[Booking]) -> None:
        ctx.state.seat = ""

    async def charge(self, ctx: SagaContext[Booking]) -> Charge:
        return Charge(booking=ctx.saga_id)

    @handles
    async def charged(self, event: Charged) -> None: ...

    async def notify(self, ctx: SagaContext[Booking]) -> None: ...

    steps = (
        Step(reserve, compensation=release, timeout_seconds=40),
        Step(charge, compensation=NO_COMPENSATION, replies=[charged], reply_timeout_seconds=3600),
        Step(notify, compensation=NO_COMPENSATION, name="tell", max_attempts=1),
    )


def test_it_is_an_actor_whose_handlers_begin_and_continue_it() -> None:
    spec = Rebooking.__understudy__
    assert {handler.method: handler.filter for handler in spec.handlers} == {
        "delayed": "flights.delayed",
        "charged": "payments.charged",
    }
    assert spec.options.is_sole_owner
    assert spec.options.concurrency == 16
    assert spec.options.on_failure == "redeliver"
    # More than the longest action or compensation, whatever a reply may take.
    assert spec.options.handler_timeout_seconds == 50
    assert all(handler.wants_context and handler.is_async for handler in spec.handlers)


def test_its_steps_are_known_by_name() -> None:
    assert Rebooking.__saga__.plan == (
        PlannedStep("reserve", False, True),
        PlannedStep("charge", True, False),
        PlannedStep("tell", False, False),
    )
    assert Rebooking.__saga__.starts == {"delayed"}
    assert Rebooking.__saga__.replies == {"charged": "charge"}


def test_the_id_is_found_in_whatever_comes() -> None:
    find = Rebooking.__understudy__.options.key
    assert callable(find)
    assert find(Delayed(booking="B1", minutes=3)) == "B1"
    assert find(Charged(booking="B1")) == "B1"
    assert find(Signal(saga="B1", kind="go")) == "B1"


@pytest.mark.parametrize("bad", ["", "a\r\nb", "x" * 201])
def test_an_id_that_can_be_no_key_is_refused(bad: str) -> None:
    find = Rebooking.__understudy__.options.key
    assert callable(find)
    with pytest.raises(DecodeError, match="the saga's id is"):
        find(Delayed(booking=bad, minutes=3))


def test_a_reply_may_have_the_id_elsewhere() -> None:
    class Paying(Saga, key="booking", state=Booking):
        @starts
        async def delayed(self, event: Delayed) -> Booking:
            return Booking()

        async def charge(self, ctx: SagaContext[Booking]) -> Charge:
            return Charge(booking=ctx.saga_id)

        @handles
        async def declined(self, event: Declined) -> None: ...

        steps = (
            Step(charge, compensation=NO_COMPENSATION, replies=[declined], correlation=lambda e: e.order[1:]),
        )

    find = Paying.__understudy__.options.key
    assert callable(find)
    assert find(Declined(order="#B1")) == "B1"


async def act(self: Saga, ctx: SagaContext[Any]) -> None: ...


def plain(self: Saga, ctx: SagaContext[Any]) -> None: ...


async def bare(self: Saga) -> None: ...


DO = Step(act, compensation=NO_COMPENSATION)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Step(act),
            "step 'act': nothing says what undoes it; give compensation=, a method of the saga, or "
            "compensation=NO_COMPENSATION if nothing has to be undone",
        ),
        (
            lambda: Step(plain, compensation=act),  # type: ignore[arg-type]
            "Step: its action is plain, which is no async def method of the saga",
        ),
        (
            lambda: Step(bare, compensation=act),
            "Step: bare takes self; write async def bare(self, ctx: SagaContext)",
        ),
        (
            lambda: Step(act, compensation="release"),  # type: ignore[arg-type]
            "step 'act': its compensation is 'release', which is no async def method of the saga",
        ),
        (
            lambda: Step(act, compensation=act, correlation="order"),
            "step 'act': correlation is for a step that waits; give replies= too",
        ),
        (
            lambda: Step(act, compensation=act, replies=act),  # type: ignore[arg-type]
            "step 'act': replies is act; give a list of handlers of the saga",
        ),
        (
            lambda: Step(act, compensation=act, timeout_seconds=0),
            "step 'act': timeout_seconds is 0; give a finite number of seconds above 0",
        ),
        (
            lambda: Step(act, compensation=act, max_attempts=0),
            "step 'act': max_attempts is 0; give an integer of 1 or more",
        ),
        (
            lambda: Step(act, compensation=act, name="a b"),
            "Step: the name is 'a b'; use 1 to 64 of the characters A-Z, a-z, 0-9, '_' and '-'",
        ),
    ],
)
def test_a_step_that_is_declared_wrongly_is_told_what_to_change(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        make()
    assert str(caught.value) == message


def saga(body: dict[str, Any] | None = None, **keywords: Any) -> Any:
    """Makes a saga class called Bad of a body and keywords, over what is right."""

    async def begun(self: Saga, event: Delayed) -> None: ...

    right = {"begun": starts(begun), "act": act, "steps": (DO,), "__qualname__": "Bad"}
    return type("Bad", (Saga,), right | (body or {}), **({"key": "booking", "state": Booking} | keywords))


def handler(type_: type, **options: Any) -> Any:
    """A method that handles an event."""

    async def method(self: Saga, event: type_) -> None: ...  # type: ignore[valid-type]

    method.__annotations__["event"] = type_
    method.__name__ = "answered"
    return handles(**options)(method) if options else handles(method)


charged, declined = handler(Charged), handler(Declined)


def test_what_starts_one_may_be_given_a_handlers_options() -> None:
    class Guarded(Saga, key="booking", state=Booking):
        @starts
        @handles(breakers=["seats"])
        async def begun(self, event: Delayed) -> Booking: ...  # type: ignore[empty-body]

        steps = (DO,)

    assert Guarded.__understudy__.handlers[0].breakers == ("seats",)
    assert Guarded.__saga__.starts == {"begun"}


@pytest.mark.parametrize(
    ("body", "keywords", "message"),
    [
        (
            {"steps": ()},
            {},
            "saga Bad: steps is (); write steps = (Step(reserve, compensation=release), …)",
        ),
        (
            {"steps": (DO, Step(act, compensation=act))},
            {},
            "saga Bad: two steps are called 'act'; give one of them another name=",
        ),
        (
            {"begun": None},
            {},
            "saga Bad: nothing starts it; put @starts on a method that takes an event",
        ),
        (
            {"begun": starts(handler(Delayed, reply=Charged))},
            {},
            "saga Bad: begun has reply=, but a saga answers nobody; take it away",
        ),
        ({}, {"state": None}, "saga Bad: state is None; give a subclass of State"),
        (
            {},
            {"key": None},
            "saga Bad: key is None; give the attribute of the events that start it which names the saga, or "
            "a callable",
        ),
        (
            {},
            {"key": "bookin"},
            "saga Bad: Delayed, which begun takes, has no field 'bookin', so it names no saga; did you mean "
            "'booking'?",
        ),
        ({}, {"ordered": True}, "saga Bad: ordered isn't a saga's to choose; remove it"),
        ({}, {"mailbx": 1}, "saga Bad: unknown option 'mailbx'; did you mean 'mailbox'?"),
        (
            {},
            {"handler_timeout_seconds": 10},
            "saga Bad: handler_timeout_seconds is 10, but a step may take 10.0; raise it, or leave it out",
        ),
        (
            {"answered": charged},
            {},
            "saga Bad: answered handles an event that no step waits for; name it in a step's replies=, or "
            "put @starts above it instead",
        ),
        (
            {"steps": (Step(act, compensation=act, replies=[act]),)},
            {},
            "saga Bad: act, a reply of step 'act', is no handler; put @handles above it",
        ),
        (
            {"answered": declined, "steps": (Step(act, compensation=act, replies=[declined]),)},
            {},
            "saga Bad: Declined, which answered takes, has no field 'booking', so it names no saga; add it, "
            "or say by the step's correlation= where the reply has the saga's id",
        ),
        (
            {
                "answered": charged,
                "steps": (
                    Step(act, compensation=act, replies=[charged]),
                    Step(act, compensation=act, replies=[charged], name="again"),
                ),
            },
            {},
            "saga Bad: answered is the reply of 'act' and of 'again', so nobody can tell which of them it "
            "answers; use an event for each",
        ),
    ],
)
def test_a_saga_that_is_declared_wrongly_is_told_what_to_change(
    body: dict[str, Any], keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        saga(body, **keywords)
    assert str(caught.value).replace("actor Bad", "saga Bad") == message


class Blank(Event):
    """A base of events."""


class Orphan(Event):
    """It has no subject, and nothing is derived from it."""


class Told(Blank, subject="payments.told"):
    pass


def returning(annotation: Any, *, name: str = "act") -> Any:
    """An action, a compensation or what takes an event, that says it returns this."""

    async def method(self: Saga, it: Any) -> None: ...

    method.__name__ = name
    method.__annotations__ = {"it": Delayed, "return": annotation}
    return method


def replied(annotation: Any) -> dict[str, Any]:
    """A saga's body whose reply handler says that it returns this."""
    reply = returning(annotation, name="answered")
    reply.__annotations__["it"] = Charged
    reply = handles(reply)
    return {"answered": reply, "steps": (Step(returning(Charge), compensation=act, replies=[reply]),)}


def stepped(annotation: Any) -> dict[str, Any]:
    """A saga's body whose step has an action that says it returns this."""
    return {"steps": (Step(returning(annotation), compensation=act),)}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            stepped(Orphan | None),
            "act, of step 'act', returns Orphan, which has no subject to be published to; "
            'write class Orphan(Event, subject="…")',
        ),
        (
            {"steps": (Step(act, compensation=returning(Orphan, name="undo")),)},
            "undo, of step 'act', returns Orphan, which has no subject to be published to; "
            'write class Orphan(Event, subject="…")',
        ),
        (stepped(int), "act, of step 'act', returns int; return an Event or None"),
        (stepped("list[Charge]"), "act, of step 'act', returns list[{}.Charge]; return an Event or None"),
        (
            {
                "answered": charged,
                "steps": (Step(returning(None), compensation=act, replies=[charged]),),
            },
            "act, of step 'act', returns None, but the step waits for a reply; return the event that is to "
            "be replied to, or take replies= away",
        ),
        (
            {"begun": starts(returning(Charge | None, name="begun"))},
            "begun returns Charge; return Booking, the saga's state, or None to start none",
        ),
        (
            replied(list[Charge]),
            "answered returns Charge, but what the handler of a reply returns goes nowhere; publish it by "
            "ctx.publish",
        ),
    ],
)
def test_a_method_that_says_it_returns_what_fails_each_run_is_refused(
    body: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        saga(body)
    assert str(caught.value) == f"saga Bad: {message.format(__name__)}"


@pytest.mark.parametrize(
    "body",
    [
        *map(stepped, (Charge, Blank, Event, Charge | Told | None, Any, object, "Unknown", TypeVar("Some"))),
        *map(replied, (None, bool, Any)),
        {"begun": starts(returning(State, name="begun"))},
        {"begun": starts(returning(Any, name="begun"))},
    ],
)
def test_one_that_may_return_what_is_right_or_that_nobody_can_tell_of_is_taken(body: dict[str, Any]) -> None:
    """A base of events, anything at all, and what is imported for type checkers alone."""
    assert list(saga(body).__saga__.steps) == ["act"]
