"""Supervisor and Child: what a tree may be declared as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from understudy.actors.actor import Actor
from understudy.actors.errors import DeclarationError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Reject
from understudy.actors.supervision import Child as TypedChild
from understudy.actors.supervision import Supervisor as TypedSupervisor

# Much here is wrong on purpose, which type checkers would say too.
Child: Any = TypedChild
Supervisor: Any = TypedSupervisor


class Placed(Event, subject="orders.placed"):
    region: str


class Shop(Actor, key="region"):
    @handles
    async def placed(self, event: Placed) -> None: ...


class Idle(Actor):
    pass


class Mailer(Actor):
    def __init__(self, url: str, sizes: list[object] | None = None) -> None:
        self.url, self.sizes = url, sizes

    @handles
    async def placed(self, event: Placed) -> None: ...


class Open(Mailer):
    def __init__(self, url: str, **more: object) -> None:
        super().__init__(url)
        self.more = more


def test_a_class_is_short_for_its_child() -> None:
    first, second, third = Supervisor(
        "ops", children=[Shop, Child(Shop, name="second"), Supervisor("inner", children=[Shop])]
    ).children
    assert isinstance(first, TypedChild)
    assert isinstance(second, TypedChild)
    assert isinstance(third, TypedSupervisor)
    assert (first.actor_class, first.spec, dict(first.args)) == (Shop, Shop.__understudy__, {})
    assert second.spec.name == "second"


def test_a_child_overrides_options_and_leaves_the_class_alone() -> None:
    child = Child(Shop, key=None, replicas=2)
    assert (child.spec.options.replicas, child.spec.options.concurrency) == (2, 1)
    assert Shop.__understudy__.options.replicas == 1


def test_a_supervisor_and_an_actor_say_how_they_are_restarted() -> None:
    """Permanent, one_for_one and on nothing in particular, unless they say otherwise."""
    plain = Supervisor("ops", children=[Shop])
    assert (plain.strategy, plain.restart) == ("one_for_one", "permanent")
    options = plain.children[0].spec.options
    assert (options.restart, options.restart_on, options.max_consecutive_failures) == ("permanent", (), None)
    child = Child(Shop, restart="transient", restart_on=[OSError, Exception], max_consecutive_failures=1)
    ops = Supervisor("ops", children=[child], strategy="rest_for_one", restart="temporary")
    assert (ops.strategy, ops.restart) == ("rest_for_one", "temporary")
    options = child.spec.options
    assert (options.restart, options.restart_on) == ("transient", (OSError, Exception))
    assert options.max_consecutive_failures == 1


def test_args_are_plain_values_that_the_class_takes() -> None:
    args = {"url": "x", "sizes": [1, {"a": None}]}
    assert dict(Child(Mailer, args=args).args) == args
    assert dict(Child(Open, args={"url": "x", "any": 1}).args) == {"url": "x", "any": 1}


OPEN: Any = open


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Child(str), "Child: <class 'str'> is no subclass of Actor; give the class itself"),
        (lambda: Child(Idle), "Child(Idle): Idle handles nothing; put @handles on one of its methods"),
        (
            lambda: Child(Shop, name="a b"),
            "Child(Shop): the name is 'a b'; use 1 to 64 of the characters A-Z, a-z, 0-9, '_' and '-'",
        ),
        (lambda: Child(Shop, replica=2), "Child(Shop): unknown option 'replica'; did you mean 'replicas'?"),
        (
            lambda: Child(Shop, key="regoin"),
            "Child(Shop): key is 'regoin', but Placed, which placed takes, has no such field; "
            "did you mean 'region'?",
        ),
        (
            lambda: Child(Shop, args={"pool": [OPEN]}),
            "Child(Shop): args['pool'] is a list; give plain values "
            "(numbers, texts, bytes, lists, dicts) and make the rest in on_start",
        ),
        (
            lambda: Child(Mailer, args={"uri": 1}),
            "Child(Mailer): Mailer.__init__ takes no 'uri'; did you mean 'url'?",
        ),
        (lambda: Child(Shop, args={"url": 1}), "Child(Shop): Shop.__init__ takes no 'url'"),
        (lambda: Child(Shop, args=[1]), "Child(Shop): args is [1]; give a dict of keyword arguments"),
        (
            lambda: Supervisor("ops", children=[]),
            "supervisor 'ops': children is []; give a list of at least one actor class",
        ),
        (
            lambda: Supervisor("ops", children=["Shop"]),
            "supervisor 'ops': 'Shop' is no child; give an Actor class, a Child or a Supervisor",
        ),
        (
            lambda: Supervisor("ops", children=[Shop()]),
            "supervisor 'ops': a child is an instance of Shop; give the class, "
            "or Child(Shop, args={…}): each cell makes its own instance",
        ),
        (
            lambda: Supervisor("ops", children=[Shop], strategy="one_for_on"),
            "supervisor 'ops': strategy is 'one_for_on'; "
            "use 'one_for_one' or 'one_for_all' or 'rest_for_one'",
        ),
        (
            lambda: Supervisor("ops", children=[Shop], restart="never"),
            "supervisor 'ops': restart is 'never'; use 'permanent' or 'transient' or 'temporary'",
        ),
        (
            lambda: Child(Shop, restart="always"),
            "Child(Shop): restart is 'always'; use 'permanent' or 'transient' or 'temporary'",
        ),
        (
            lambda: Child(Shop, restart_on=OSError),
            "Child(Shop): restart_on is <class 'OSError'>; give a list of exception classes",
        ),
        (
            lambda: Child(Shop, restart_on=[OSError()]),
            "Child(Shop): restart_on is [OSError()]; give a list of exception classes",
        ),
        (
            lambda: Child(Shop, restart_on=[Reject]),
            "Child(Shop): restart_on names Reject, which handlers raise on purpose; remove it",
        ),
        (
            lambda: Child(Shop, max_consecutive_failures=0),
            "Child(Shop): max_consecutive_failures is 0; give an integer of 1 or more",
        ),
        (
            lambda: Supervisor("ops", children=[Shop], max_restarts=-1),
            "supervisor 'ops': max_restarts is -1; give an integer of 0 or more",
        ),
        (
            lambda: Supervisor("ops", children=[Shop], max_seconds=0),
            "supervisor 'ops': max_seconds is 0; give a finite number of seconds above 0",
        ),
    ],
)
def test_a_wrong_tree_is_refused_where_it_is_declared(make: Callable[[], object], text: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        make()
    assert str(caught.value) == text
