"""The hooks of a user's actor: made and started, and stopped."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from understudy.actors.actor import Actor
from understudy.actors.context import StartContext
from understudy.actors.saga import Saga
from understudy.runtime.app import ResolvedChild
from understudy.runtime.cell.saga import SagaHost
from understudy.runtime.cell.start import CellStart

_log = structlog.get_logger("understudy.cell")


async def start_actor(child: ResolvedChild, start: CellStart) -> Actor:
    """Make the actor and run its `on_restart`, if there was one before it, and its `on_start`.

    Args:
        child: its declaration.
        start: which start of which cell this is.

    Raises:
        Exception: whatever the user's code raises.
    """
    actor = child.make()
    if start.reason:
        await _call(lambda: actor.on_restart(start.reason), actor.on_restart)
    context = StartContext(
        app=start.run.app,
        actor=start.spec.actor,
        cell=start.spec.name,
        generation=start.generation,
        log=structlog.get_logger("understudy.actor"),
    )
    await _call(lambda: actor.on_start(context), actor.on_start)
    return SagaHost(actor, child, start.run.app) if isinstance(actor, Saga) else actor


async def stop_actor(actor: Actor) -> None:
    """Run the actor's `on_stop`; what it raises is logged."""
    try:
        await _call(actor.on_stop, actor.on_stop)
    except (Exception, SystemExit):  # noqa: BLE001, user code may raise anything, and the stop goes on
        _log.exception("on_stop failed")


async def _call(call: Callable[[], Awaitable[None] | None], hook: Callable[..., Any]) -> None:
    """Run a user's hook: in the event loop if it is a coroutine function, else in a thread."""
    if inspect.iscoroutinefunction(hook):
        result = call()
        assert result is not None
        await result
    else:
        await asyncio.to_thread(call)
