"""App and Stream: checked as a whole, and turned into plain values."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from understudy.actors.actor import Actor
from understudy.actors.errors import DeclarationError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import CircuitBreaker
from understudy.actors.supervision import Child, Supervisor
from understudy.runtime.app import App
from understudy.runtime.specification import hash_specification
from understudy.runtime.specs import AppSpec, CellSpec, ConsumerSpec, StreamSpec, SupervisorSpec
from understudy.runtime.stream import Stream


class Placed(Event, subject="orders.{region}.placed"):
    region: str


class Shop(Actor, key="region", breakers=[CircuitBreaker("payments", fail_max=2)]):
    @handles
    async def placed(self, event: Placed) -> None: ...


class Mailer(Actor, replicas=2):
    def __init__(self, url: str, retries: int = 1) -> None:
        self.url = url
        self.retries = retries

    @handles("orders.>")
    async def anything(self, event: bytes) -> None: ...


ORDERS = Stream("ORDERS", subjects=["orders.>"], max_age_seconds=60)


def app(**changes: Any) -> App:
    given: dict[str, Any] = {"streams": [ORDERS], "children": [Shop]} | changes
    return App("shop", **given)


def full_app() -> App:
    mailer = Child(Mailer, args={"url": "x"}, ack_wait_seconds=20)
    return app(
        children=[Supervisor("ops", children=[mailer], max_restarts=1), Shop],
        breakers=[CircuitBreaker("payments"), CircuitBreaker("mail")],
        revision=3,
    )


def test_an_app_becomes_plain_values() -> None:
    def cell(actor: str, index: int, ack_wait: float) -> CellSpec:
        return CellSpec(
            actor=actor,
            index=index,
            durable=f"shop-{actor}",
            stream="ORDERS",
            start_timeout_seconds=30.0,
            hang_timeout_seconds=8.0,
            ack_wait_seconds=ack_wait,
        )

    def consumer(actor: str, filters: tuple[str, ...], cells: int, ack_wait: float) -> ConsumerSpec:
        return ConsumerSpec(
            durable=f"shop-{actor}",
            stream="ORDERS",
            filters=filters,
            ack_wait_seconds=ack_wait,
            start="all",
            capacity=1024,
            cells=cells,
            actor=actor,
            sole_owner=actor == "shop",
            specification=hash_specification(full_app().child(actor).spec, "ORDERS"),
        )

    ops = SupervisorSpec(
        name="ops",
        strategy="one_for_one",
        max_restarts=1,
        max_seconds=5.0,
        children=(cell("mailer", 0, 20), cell("mailer", 1, 20)),
    )
    assert full_app().spec() == AppSpec(
        name="shop",
        revision=3,
        streams=(StreamSpec(name="ORDERS", subjects=("orders.>",), max_age_seconds=60),),
        consumers=(
            consumer("mailer", ("orders.>",), 2, 20),
            consumer("shop", ("orders.*.placed",), 1, 15.0),
        ),
        root=SupervisorSpec(
            name="root",
            strategy="one_for_one",
            max_restarts=3,
            max_seconds=5.0,
            children=(ops, cell("shop", 0, 15.0)),
        ),
        has_breakers=True,
    )


def test_the_plain_values_cross_a_process_border_either_way() -> None:
    spec = full_app().spec()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=AppSpec) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_cell_is_named_after_its_actor_and_index() -> None:
    (ops, shop) = full_app().spec().root.children
    assert shop.name == "shop/0"
    assert isinstance(ops, SupervisorSpec)
    assert [cell.name for cell in ops.children] == ["mailer/0", "mailer/1"]


def test_a_child_is_resolved_with_its_overrides_arguments_and_breakers() -> None:
    mailer, shop = full_app().child("mailer"), full_app().child("shop")
    made = mailer.make()
    assert isinstance(made, Mailer)
    assert (made.url, made.retries) == ("x", 1)
    assert mailer.spec.options.ack_wait_seconds == 20
    assert mailer.consumer.durable == "shop-mailer"
    assert {name: breaker.fail_max for name, breaker in mailer.breakers.items()} == {"payments": 5, "mail": 5}
    assert {name: breaker.fail_max for name, breaker in shop.breakers.items()} == {"payments": 2, "mail": 5}
    assert dict(shop.breaker_keys) == {"payments": "shop.payments", "mail": "mail"}


def test_an_existing_stream_is_used_where_the_option_names_it() -> None:
    spec = app(streams=[Stream.existing("OLD")], children=[Child(Shop, stream="OLD", durable="mine")]).spec()
    assert spec.streams == (StreamSpec(name="OLD", subjects=(), existing=True),)
    assert (spec.consumers[0].stream, spec.consumers[0].durable) == ("OLD", "mine")


def test_the_stream_that_holds_all_filters_is_found() -> None:
    others = [Stream("FIRST", subjects=["a.>", "b"]), Stream("EU", subjects=["orders.*.placed"])]
    assert app(streams=others).spec().consumers[0].stream == "EU"


WORKQUE: Any = "workque"
WORK = Stream("WORK", subjects=["orders.>"], retention="workqueue")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: App("a b", streams=[ORDERS], children=[Shop]),
            "App: the name is 'a b'; use 1 to 64 of the characters A-Z, a-z, 0-9, '_' and '-'",
        ),
        (lambda: app(revision=-1), "app 'shop': revision is -1; give an integer of 0 or more"),
        (lambda: app(streams=[]), "app 'shop': streams is []; give a list of at least one Stream"),
        (
            lambda: app(streams=["ORDERS"]),
            "app 'shop': 'ORDERS' is no Stream; write Stream(name, subjects=[…])",
        ),
        (
            lambda: app(streams=[ORDERS, ORDERS]),
            "app 'shop': two streams are called 'ORDERS'; rename or merge them",
        ),
        (
            lambda: app(streams=[ORDERS, Stream("EU", subjects=["orders.eu.*"])]),
            "app 'shop': the subjects 'orders.>' of stream 'ORDERS' and 'orders.eu.*' of stream 'EU' "
            "overlap; a subject belongs to one stream",
        ),
        (
            lambda: app(streams=[Stream("ALL", subjects=[">"])]),
            "app 'shop': the subject '>' of stream 'ALL' takes in 'dead-letters.shop.>', "
            "which belongs to the app's dead letters; narrow it",
        ),
        (
            lambda: app(children=[]),
            "supervisor 'root': children is []; give a list of at least one actor class",
        ),
        (
            lambda: app(children=[Shop, Supervisor("ops", children=[Shop])]),
            "app 'shop': two actors are called 'shop'; give one a Child(…, name=)",
        ),
        (
            lambda: app(children=[Supervisor("root", children=[Shop])]),
            "app 'shop': two supervisors are called 'root'; rename one ('root' is the app's own)",
        ),
        (
            lambda: app(children=[Shop, Child(Shop, name="other", durable="shop-shop")]),
            "app 'shop': two durables are called 'shop-shop'; each actor needs one of its own",
        ),
        (lambda: app(breakers=[3]), "app 'shop': breakers is [3]; give a list of CircuitBreaker"),
        (
            lambda: app(breakers=[CircuitBreaker("a"), CircuitBreaker("a")]),
            "app 'shop': two breakers are called 'a'; rename one",
        ),
        (
            lambda: app(children=[Mailer]),
            "app 'shop': actor 'mailer' can't be made with args={}: missing a required argument: 'url'; "
            "give what Mailer.__init__ takes, as in Child(Mailer, args={…})",
        ),
        (
            lambda: app(children=[Child(Shop, stream="ORDER")]),
            "app 'shop': actor 'shop': stream 'ORDER' is not among the app's streams; did you mean 'ORDERS'?",
        ),
        (
            lambda: app(streams=[Stream("A", subjects=["a"])], children=[Child(Shop, stream="A")]),
            "app 'shop': actor 'shop' handles 'orders.*.placed', which stream 'A' (a) does not hold",
        ),
        (
            lambda: app(streams=[Stream("A", subjects=["a", "b"]), Stream.existing("OLD")]),
            "app 'shop': actor 'shop' handles 'orders.*.placed', but no stream of the app holds all of that "
            "(stream 'A' (a, b); stream 'OLD' (existing)); "
            "add the subjects to one stream, or name an existing one by the actor's option stream=",
        ),
        (
            lambda: app(streams=[WORK], children=[Shop, Child(Mailer, args={"url": "x"})]),
            "app 'shop': actors 'shop' (orders.*.placed) and 'mailer' (orders.>) both read "
            "the work-queue stream 'WORK', where each message goes to one reader; "
            "handle them in one actor, or give the stream another retention",
        ),
        (
            lambda: Stream("A", subjects="orders.>"),
            "stream 'A': subjects is 'orders.>'; give a list such as [\"orders.>\"]",
        ),
        (
            lambda: Stream("A", subjects=["a.*.c", "a.b.*"]),
            "stream 'A': the subjects 'a.*.c' and 'a.b.*' overlap; keep one of them",
        ),
        (
            lambda: Stream("A", subjects=["a"], retention=WORKQUE),
            "stream 'A': retention is 'workque'; use 'limits' or 'workqueue' or 'interest'",
        ),
        (
            lambda: Stream("A", subjects=["a"], max_age_seconds=0),
            "stream 'A': max_age_seconds is 0; give a finite number of seconds above 0",
        ),
        (
            lambda: Stream("A", subjects=["a"], replicas=0),
            "stream 'A': replicas is 0; give an integer of 1 or more",
        ),
        (
            lambda: Stream("A.B", subjects=["a"]),
            "Stream: the name is 'A.B'; use 1 to 64 of the characters A-Z, a-z, 0-9, '_' and '-'",
        ),
    ],
)  # fmt: skip
def test_a_wrong_app_is_refused_where_it_is_declared(make: Callable[[], object], text: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        make()
    assert str(caught.value) == text


def test_a_handler_s_breakers_are_the_actor_s_or_the_app_s() -> None:
    """Any other is named, with the nearest."""

    class Paying(Actor, breakers=[CircuitBreaker("payments")]):
        @handles(breakers=["payments", "mail"])
        async def placed(self, event: Placed) -> None: ...

    stream = Stream("ORDERS", subjects=["orders.>"])
    App("shop", streams=[stream], children=[Paying], breakers=[CircuitBreaker("mail")])
    with pytest.raises(DeclarationError) as raised:
        App("shop", streams=[stream], children=[Paying], breakers=[CircuitBreaker("email")])
    assert str(raised.value) == (
        "app 'shop': actor 'paying': placed needs the circuit breaker 'mail', which neither the actor nor "
        "the app has; did you mean 'email'?"
    )
    with pytest.raises(DeclarationError) as raised:
        App("shop", streams=[stream], children=[Child(Paying, breakers=[])])
    assert str(raised.value) == (
        "app 'shop': actor 'paying': placed needs the circuit breaker 'payments', which neither the actor "
        "nor the app has; add CircuitBreaker('payments') to the actor or the app"
    )
