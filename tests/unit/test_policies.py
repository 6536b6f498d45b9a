"""Mailbox, Batch, RetryPolicy and CircuitBreaker check their values."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.errors import DeclarationError
from understudy.actors.policies import Batch, CircuitBreaker, Mailbox, RetryPolicy

HALF: Any = 1.5


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Mailbox(capacity=0), "Mailbox: capacity is 0; give an integer of 1 or more"),
        (lambda: Mailbox(capacity=True), "Mailbox: capacity is True; give an integer of 1 or more"),
        (lambda: Mailbox(max_bytes=HALF), "Mailbox: max_bytes is 1.5; give an integer of 1 or more"),
        (lambda: Batch(size=0), "Batch: size is 0; give an integer of 1 or more"),
        (
            lambda: Batch(size=1, timeout_seconds=-1),
            "Batch: timeout_seconds is -1; give a finite number of seconds of 0 or more",
        ),
        (
            lambda: RetryPolicy(max_attempts=0),
            "RetryPolicy: max_attempts is 0; give an integer of 1 or more",
        ),
        (
            lambda: RetryPolicy(min_delay_seconds=5, max_delay_seconds=1),
            "RetryPolicy: min_delay_seconds (5) is above max_delay_seconds (1); lower it or raise the other",
        ),
        (
            lambda: CircuitBreaker("pay ments"),
            "CircuitBreaker: the name is 'pay ments'; "
            "use 1 to 64 of the characters A-Z, a-z, 0-9, '_' and '-'",
        ),
        (
            lambda: CircuitBreaker("payments", timeout_seconds=0),
            "CircuitBreaker 'payments': timeout_seconds is 0; give a finite number of seconds above 0",
        ),
        (
            lambda: CircuitBreaker("payments", max_concurrent=0),
            "CircuitBreaker 'payments': max_concurrent is 0; give an integer of 1 or more",
        ),
        (
            lambda: CircuitBreaker("payments", success_threshold=0),
            "CircuitBreaker 'payments': success_threshold is 0; give an integer of 1 or more",
        ),
        (
            lambda: CircuitBreaker("payments", excluded=[KeyboardInterrupt]),
            "CircuitBreaker 'payments': excluded is [<class 'KeyboardInterrupt'>]; "
            "give a list of exception classes, and of functions that take an exception",
        ),
        (
            lambda: CircuitBreaker("payments", excluded=ValueError),  # type: ignore[arg-type]
            "CircuitBreaker 'payments': excluded is <class 'ValueError'>; "
            "give a list of exception classes, and of functions that take an exception",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(make: Callable[[], object], text: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        make()
    assert str(caught.value) == text


# Wrong on purpose, which type checkers would say too.
AnyMailbox: Any = Mailbox
AnyBatch: Any = Batch
AnyRetryPolicy: Any = RetryPolicy
AnyCircuitBreaker: Any = CircuitBreaker


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: AnyMailbox(capacty=1), "Mailbox: unknown option 'capacty'; did you mean 'capacity'?"),
        (lambda: AnyMailbox(zzz=1), "Mailbox: unknown option 'zzz'; known are capacity, max_bytes"),
        (
            lambda: AnyRetryPolicy(max_attempt=1),
            "RetryPolicy: unknown option 'max_attempt'; did you mean 'max_attempts'?",
        ),
        (
            lambda: AnyBatch(),
            "Batch: Missing required argument 'size'; give its options as size=, timeout_seconds=",
        ),
        (
            lambda: AnyCircuitBreaker("payments", failmax=1),
            "CircuitBreaker: unknown option 'failmax'; did you mean 'fail_max'?",
        ),
        (
            lambda: AnyMailbox(8),
            "Mailbox: Extra positional arguments provided; give its options as capacity=, max_bytes=",
        ),
        (
            lambda: AnyCircuitBreaker(),
            "CircuitBreaker: Missing required argument 'name'; "
            "give its options as name=, fail_max=, reset_timeout_seconds=, timeout_seconds=, "
            "max_concurrent=, success_threshold=, excluded=",
        ),
    ],
)
def test_a_misspelt_option_is_named_with_the_nearest(make: Callable[[], object], text: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        make()
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "policy",
    [
        Mailbox(capacity=8),
        Batch(size=8),
        RetryPolicy(max_attempts=2),
        CircuitBreaker("payments", fail_max=1),
    ],
)
def test_policies_stay_plain_values(policy: Any) -> None:
    """Copied, pickled, encoded and compared as any struct."""
    encoded = msgspec.msgpack.encode(policy)
    assert msgspec.structs.replace(policy) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert msgspec.msgpack.decode(encoded, type=type(policy)) == policy


def test_a_batch_may_take_what_is_there_without_waiting() -> None:
    assert (Batch(size=10).timeout_seconds, Batch(size=10, timeout_seconds=0).timeout_seconds) == (1.0, 0)


def test_backoff_doubles_from_the_minimum_up_to_the_maximum() -> None:
    retry = RetryPolicy(min_delay_seconds=0.5, max_delay_seconds=3)
    assert [retry.delay_seconds(attempt, 1.0) for attempt in (1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 3, 3]


@given(attempt=st.integers(1, 10**9), random=st.floats(0, 1, exclude_max=True))
def test_full_jitter_never_exceeds_the_maximum(attempt: int, random: float) -> None:
    assert 0 <= RetryPolicy().delay_seconds(attempt, random) <= 60
