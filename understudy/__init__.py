"""Supervised actors on NATS JetStream: when one falls, its understudy goes on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.actors.actor import Actor
    from understudy.actors.context import BatchContext, Context, StartContext
    from understudy.actors.errors import (
        AskError,
        AskFailed,
        AskRejected,
        AskTimeout,
        BulkheadFull,
        CircuitOpen,
        UnderstudyError,
    )
    from understudy.actors.event import Event
    from understudy.actors.handlers import handles
    from understudy.actors.idempotency import Idempotency
    from understudy.actors.outcomes import Reject, Retry
    from understudy.actors.policies import Batch, CircuitBreaker, Mailbox, RetryPolicy
    from understudy.actors.saga import Saga, SagaContext, starts
    from understudy.actors.saga_step import NO_COMPENSATION, Step
    from understudy.actors.state import State
    from understudy.actors.supervision import Child, Supervisor
    from understudy.runtime.app import App
    from understudy.runtime.jetstream.publisher import Publisher
    from understudy.runtime.stream import Stream

    __version__: str

__all__ = [
    "NO_COMPENSATION",
    "Actor",
    "App",
    "AskError",
    "AskFailed",
    "AskRejected",
    "AskTimeout",
    "Batch",
    "BatchContext",
    "BulkheadFull",
    "Child",
    "CircuitBreaker",
    "CircuitOpen",
    "Context",
    "Event",
    "Idempotency",
    "Mailbox",
    "Publisher",
    "Reject",
    "Retry",
    "RetryPolicy",
    "Saga",
    "SagaContext",
    "StartContext",
    "State",
    "Step",
    "Stream",
    "Supervisor",
    "UnderstudyError",
    "__version__",
    "handles",
    "starts",
]

# Loaded at first use: a module that only declares events needs no broker client.
_MODULES = {
    "NO_COMPENSATION": "understudy.actors.saga_step",
    "Actor": "understudy.actors.actor",
    "App": "understudy.runtime.app",
    "AskError": "understudy.actors.errors",
    "AskFailed": "understudy.actors.errors",
    "AskRejected": "understudy.actors.errors",
    "AskTimeout": "understudy.actors.errors",
    "Batch": "understudy.actors.policies",
    "BatchContext": "understudy.actors.context",
    "BulkheadFull": "understudy.actors.errors",
    "Child": "understudy.actors.supervision",
    "CircuitBreaker": "understudy.actors.policies",
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


if not TYPE_CHECKING:
    # Hidden from type checkers, to which it would make every misspelt name a valid one.

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            value: object = version("understudy")
        elif name in _MODULES:
            value = getattr(importlib.import_module(_MODULES[name]), name)
        else:
            raise AttributeError(f"module 'understudy' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
