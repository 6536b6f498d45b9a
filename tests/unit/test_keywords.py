"""What is misspelt in a declaration is answered with what was probably meant, whatever declares it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import understudy
from understudy.actors.errors import DeclarationError

# All of it is wrong on purpose, which type checkers would say too.
names: Any = understudy


class Shop(understudy.Actor):
    @understudy.handles("orders.>")
    async def placed(self, event: bytes) -> None: ...


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: names.App("shop", childen=[Shop]),
            "App: unknown option 'childen'; did you mean 'children'?",
        ),
        (lambda: names.App("shop", streams=[]), "App: missing a required argument: 'children'"),
        (lambda: names.App("shop", [Shop]), "App: too many positional arguments"),
        (
            lambda: names.Supervisor("ops", children=[Shop], stratgy="one_for_all"),
            "Supervisor: unknown option 'stratgy'; did you mean 'strategy'?",
        ),
        (lambda: names.Child(Shop, nme="x"), "Child(Shop): unknown option 'nme'; did you mean 'name'?"),
        (lambda: names.Child(), "Child: missing a required argument: 'actor_class'"),
        (
            lambda: names.Stream("ORDERS", subject=["orders.>"]),
            "Stream: unknown option 'subject'; did you mean 'subjects'?",
        ),
        (
            lambda: names.Stream.existing("ORDERS", zzz=1),
            "Stream.existing: unknown option 'zzz'; known are name",
        ),
        (
            lambda: names.Step(Shop.placed, compensatoin=Shop.placed),
            "Step: unknown option 'compensatoin'; did you mean 'compensation'?",
        ),
        (
            lambda: names.handles("orders.>", bach=names.Batch(size=3)),
            "@handles: unknown option 'bach'; did you mean 'batch'?",
        ),
    ],
)
def test_a_wrong_call_is_a_declaration_error_that_says_what_is_meant(
    make: Callable[[], object], text: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        make()
    assert str(caught.value) == text
