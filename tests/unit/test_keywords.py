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


def declare(**options: Any) -> None:
    """Declare an actor with these options."""
    keywords: Any = options

    class Till(understudy.Actor, **keywords):
        @understudy.handles("orders.>")
        async def placed(self, event: bytes) -> None: ...


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: declare(capacity=3),
            "'capacity'; capacity is Mailbox's and Idempotency's; write mailbox=Mailbox(capacity=…) or "
            "idempotency=Idempotency(window_seconds=…, capacity=…)",
        ),
        (
            lambda: declare(max_bytes=3),
            "'max_bytes'; max_bytes is Mailbox's; write mailbox=Mailbox(max_bytes=…)",
        ),
        (
            lambda: declare(max_crashes=3),
            "'max_crashes'; max_crashes is RetryPolicy's; write retry=RetryPolicy(max_crashes=…)",
        ),
        (
            lambda: declare(store="memory"),
            "'store'; store is Idempotency's; write idempotency=Idempotency(window_seconds=…, store=…)",
        ),
        (
            lambda: declare(fail_max=3),
            "'fail_max'; fail_max is CircuitBreaker's; write breakers=[CircuitBreaker(name=…, fail_max=…)]",
        ),
        (
            lambda: declare(timeout_seconds=3),
            "'timeout_seconds'; timeout_seconds is CircuitBreaker's; write "
            "breakers=[CircuitBreaker(name=…, timeout_seconds=…)] or handler_timeout_seconds=… or "
            "hang_timeout_seconds=… or start_timeout_seconds=…",
        ),
        (
            lambda: names.Child(Shop, max_attempts=3),
            "'max_attempts'; max_attempts is RetryPolicy's; write retry=RetryPolicy(max_attempts=…)",
        ),
        (
            lambda: names.handles("orders.>", size=3),
            "'size'; size is Batch's; write batch=Batch(size=…)",
        ),
        (
            lambda: names.App("shop", children=[Shop], fail_max=3),
            "'fail_max'; fail_max is CircuitBreaker's; write breakers=[CircuitBreaker(name=…, fail_max=…)]",
        ),
    ],
)
def test_an_option_of_a_policy_is_answered_with_the_policy(make: Callable[[], object], text: str) -> None:
    """Where a newcomer writes it: beside the option that takes the policy, instead of in it."""
    with pytest.raises(DeclarationError) as caught:
        make()
    assert str(caught.value).endswith(f": unknown option {text}")


def test_an_actors_name_is_not_taken_for_a_breakers() -> None:
    """Which says nothing about what the breaker does."""
    with pytest.raises(DeclarationError) as caught:
        declare(name="till")
    assert "unknown option 'name'; known are ack_wait_seconds" in str(caught.value)
