"""The facade: what `import understudy` offers."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import understudy

NAMES = {
    "NO_COMPENSATION": "understudy.actors.saga_step",
    "Actor": "understudy.actors.actor",
    "App": "understudy.runtime.app",
    "AskError": "understudy.actors.errors",
    "AskFailed": "understudy.actors.errors",
    "AskRejected": "understudy.actors.errors",
    "AskTimeout": "understudy.actors.errors",
    "Batch": "understudy.actors.policies",
    "BatchContext": "understudy.actors.context",
    "Child": "understudy.actors.supervision",
    "CircuitBreaker": "understudy.actors.policies",
    "BulkheadFull": "understudy.actors.errors",
    "CircuitOpen": "understudy.actors.errors",
    "Context": "understudy.actors.context",
    "Event": "understudy.actors.event",
    "Idempotency": "understudy.actors.idempotency",
    "Mailbox": "understudy.actors.policies",
    "Publisher": "understudy.runtime.jetstream.publisher",
    "Reject": "understudy.actors.outcomes",
    "Retry": "understudy.actors.outcomes",
    "RetryPolicy": "understudy.actors.policies",
    "Saga": "understudy.actors.saga",
    "SagaContext": "understudy.actors.saga",
    "StartContext": "understudy.actors.context",
    "State": "understudy.actors.state",
    "Step": "understudy.actors.saga_step",
    "Stream": "understudy.runtime.stream",
    "Supervisor": "understudy.actors.supervision",
    "UnderstudyError": "understudy.actors.errors",
    "handles": "understudy.actors.handlers",
    "starts": "understudy.actors.saga",
}


def test_the_public_names_are_these() -> None:
    assert sorted(understudy.__all__) == sorted([*NAMES, "__version__"])
    assert dir(understudy) == sorted(understudy.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_the_one_of_its_defining_module(name: str) -> None:
    defined = getattr(importlib.import_module(NAMES[name]), name)
    assert getattr(understudy, name) is defined
    assert defined.__module__ == NAMES[name]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError) as caught:
        understudy.Actr  # type: ignore[attr-defined]  # noqa: B018
    assert str(caught.value) == "module 'understudy' has no attribute 'Actr'"


def test_the_version_is_that_of_the_distribution() -> None:
    assert understudy.__version__[0].isdigit()


def test_declaring_events_and_actors_loads_no_broker_client_and_no_thespian() -> None:
    code = (
        "import sys\n"
        "from understudy import Actor, App, Event, Stream, handles\n"
        "heavy = {'nats', 'thespian', 'pybreaker', 'starlette', 'uvicorn', 'typer', 'rich', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def defined_names() -> set[str]:
    """Every class that the modules for users define."""
    names = set()
    for module in sorted(set(NAMES.values())):
        for name, value in vars(importlib.import_module(module)).items():
            if isinstance(value, type) and value.__module__ == module:
                names.add(name)
    return names


def test_every_name_that_the_readme_uses_is_public() -> None:
    """Its examples can be typed as they stand."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    used = set(re.findall(r"\b(?:[A-Z][a-z]+)+\b", code)) & defined_names()
    assert used - set(understudy.__all__) == set()
