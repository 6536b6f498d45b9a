"""The error tree and the outcomes of a handler."""

from __future__ import annotations

import pickle

import pytest

from understudy.actors import errors
from understudy.actors.errors import (
    BrokerUnreachable,
    CircuitOpen,
    ConfigurationError,
    DeclarationError,
    PublishError,
    TopologyError,
    UnderstudyError,
)
from understudy.actors.outcomes import Reject, Retry


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    for cls in (cls for cls in classes if issubclass(cls, UnderstudyError)):
        assert cls.__name__ in (errors.__doc__ or "")


def test_a_configuration_error_holds_every_problem_and_shows_one_per_line() -> None:
    error = TopologyError(["stream A differs", "stream B overlaps"])
    assert error.problems == ("stream A differs", "stream B overlaps")
    assert str(error) == "stream A differs\nstream B overlaps"
    assert ConfigurationError("one").problems == ("one",)


@pytest.mark.parametrize(
    "error",
    [
        TopologyError(["a", "b"]),
        PublishError("no answer", subject="a.b", code=503),
        CircuitOpen("payments", 2.5),
        BrokerUnreachable("nobody"),
    ],
)
def test_errors_survive_pickling_with_their_attributes(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_an_open_circuit_says_which_and_for_how_long() -> None:
    assert str(CircuitOpen("payments", 2.5)) == "circuit breaker 'payments' is open; next trial in 2.5 s"


def test_outcomes_are_not_errors_of_ours() -> None:
    assert not isinstance(Retry(), UnderstudyError)
    assert not isinstance(Reject("why"), UnderstudyError)
    assert Retry(delay_seconds=0).delay_seconds == 0
    assert Reject("why").reason == "why"
    assert str(Retry(2)) == "retry in 2 s"


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), True, "2"])
def test_a_retry_needs_a_finite_delay(delay: float) -> None:
    with pytest.raises(DeclarationError) as caught:
        Retry(delay)
    assert (
        str(caught.value)
        == f"Retry: delay_seconds is {delay!r}; give a finite number of seconds of 0 or more"
    )
