"""The hash of an actor's specification: the same wherever the same was written."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from understudy.actors.actor import Actor
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.policies import Batch, CircuitBreaker, Mailbox, RetryPolicy
from understudy.actors.state import State
from understudy.actors.supervision import Child
from understudy.runtime.specification import hash_specification


class Placed(Event, subject="orders.placed"):
    """What the actor handles."""

    customer: str


class Balance(State):
    """Some state."""

    cents: int = 0


class Billing(Actor):
    """An actor of one handler."""

    @handles
    async def placed(self, event: Placed) -> None:
        """Do nothing."""


class Elsewhere(Actor):
    """The same, written otherwise."""

    @handles
    async def on_placed(self, event: Placed) -> None:
        """Do something else."""


class Raw(Actor):
    """The same subject, as bytes."""

    @handles("orders.placed")
    async def placed(self, event: bytes) -> None:
        """Do nothing."""


class Batched(Actor):
    """The same event, in batches."""

    @handles(batch=Batch(size=10))
    async def placed(self, events: list[Placed]) -> None:
        """Do nothing."""


class Paying(Billing):
    """One handler more."""

    @handles("orders.paid")
    async def paid(self, event: Any) -> None:
        """Do nothing."""


def hash_of(actor: type[Actor] = Billing, stream: str = "ORDERS", **options: Any) -> str:
    """Return the hash of an actor with options."""
    return hash_specification(Child(actor, **options).spec, stream)


def customer_of(event: Placed) -> str:
    """Return the key."""
    return event.customer


def test_a_name_arguments_and_code_are_no_part_of_it() -> None:
    """A renamed actor may keep its durable, arguments differ by node, and code can't be compared."""

    class WithArguments(Billing):
        def __init__(self, path: str = "") -> None:
            self.path = path

    plain = hash_of()
    assert hash_of(name="invoicing") == plain
    assert hash_of(WithArguments, args={"path": "/here"}) == plain
    assert hash_of(Elsewhere) == plain


def test_defaults_are_no_part_of_it() -> None:
    """A later version may add an option: what was written is still the same."""
    assert hash_of(retry=RetryPolicy(max_attempts=7)) == hash_of(
        retry=RetryPolicy(max_attempts=7, max_crashes=3)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"stream": "BILLS"},
        {"actor": Raw},
        {"actor": Batched},
        {"actor": Paying},
        {"retry": RetryPolicy(max_attempts=7)},
        {"mailbox": Mailbox(capacity=7)},
        {"ack_wait_seconds": 20},
        {"key": "customer"},
        {"key": customer_of},
        {"state": Balance},
        {"replicas": 2},
        {"breakers": [CircuitBreaker("payments")]},
        {"breakers": [CircuitBreaker("payments", fail_max=2)]},
    ],
    # Not its text, which has the address of a function in it: each worker of the tests has its own.
    ids=lambda options: next(iter(options)),
)
def test_all_that_a_user_declares_is_part_of_it(options: dict[str, Any]) -> None:
    """Whatever differs, the hash does, and it is the same when the same is written again."""
    other = hash_of(**options)
    assert other != hash_of()
    assert hash_of(**options) == other


def test_a_breaker_s_settings_are_part_of_it() -> None:
    """Not its name alone; and which handler needs it."""

    class Needing(Actor):
        @handles("orders.paid", breakers=["a"])
        async def handle(self, event: bytes) -> None: ...

    class Careless(Actor):
        @handles("orders.paid")
        async def handle(self, event: bytes) -> None: ...

    assert hash_of(Needing) != hash_of(Careless)
    assert hash_of(breakers=[CircuitBreaker("a")]) != hash_of(breakers=[CircuitBreaker("a", fail_max=2)])


def test_it_is_the_same_in_every_process() -> None:
    """Whatever the seed of Python's own hashes."""
    code = (
        "from tests.unit import test_specification as t; "
        "print(t.hash_of(t.Paying, key=t.customer_of, state=t.Balance, breakers=[t.CircuitBreaker('a')]))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    assert len(seen.pop().strip()) == 16
