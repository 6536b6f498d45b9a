"""Supervisor and Child: what a tree may be declared as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from understudy.actors.actor import Actor
from understudy.actors.errors import DeclarationError
from understudy.actors.event import Event
from understudy.actors.handlers import handles
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
            lambda: Supervisor("ops", children=[Shop], strategy="rest_for_one"),
            "supervisor 'ops': strategy 'rest_for_one' comes in a later version; use 'one_for_one'",
        ),
        (
            lambda: Supervisor("ops", children=[Shop], strategy="one_for_on"),
            "supervisor 'ops': strategy 'one_for_on' is not known; did you mean 'one_for_one'?",
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
