"""Calling an actor's handlers: in the event loop or in a thread, for as long as they may take."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from understudy.actors.actor import Actor, ActorSpec
from understudy.actors.context import BatchContext, Context
from understudy.actors.handlers import HandlerSpec
from understudy.runtime.cell.deadline import Deadline


class Calls:
    """Calls the handlers of one instance.

    Args:
        actor: the user's instance.
        spec: its declaration, options overridden.
    """

    def __init__(self, actor: Actor, spec: ActorSpec) -> None:
        self._timeout_seconds = spec.options.handler_timeout_seconds
        self._methods: dict[str, Callable[..., Any]] = {
            handler.method: getattr(actor, handler.method) for handler in spec.handlers
        }
        self._threads = ThreadPoolExecutor(spec.options.concurrency, thread_name_prefix="handler")

    async def run(
        self, handler: HandlerSpec, event: Any, context: Context | BatchContext | None, deadline: Deadline
    ) -> Any:
        """Run a handler and return what it returns.

        Args:
            handler: which.
            event: the event, or the list of them.
            context: its second parameter, None if it takes none.
            deadline: the lane's.

        Raises:
            TimeoutError: it ran too long and was cancelled.
            asyncio.CancelledError: the lane itself is to end, and nothing else.
            BaseException: whatever the handler raised.
        """
        method = self._methods[handler.method]
        deadline.arm(self._timeout_seconds, cancels=handler.is_async, name=handler.method)
        try:
            if not handler.is_async:
                return await self._in_thread(method, (event,) if context is None else (event, context))
            return await (method(event) if context is None else method(event, context))
        except asyncio.CancelledError:
            if deadline.ended:
                raise
            if deadline.expired and handler.is_async:
                raise TimeoutError(
                    f"{handler.method} ran longer than handler_timeout_seconds ({self._timeout_seconds:g} s)"
                ) from None
            raise RuntimeError(f"{handler.method} let a cancellation of its own escape") from None
        finally:
            deadline.disarm()
            if deadline.task.cancelling():
                # Also when the handler swallowed it: it isn't to meet what comes after the handler.
                await _forget_cancellation(deadline)

    def close(self) -> None:
        """Let go of the threads; one that still runs is left to the end of the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _in_thread(self, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Awaitable[Any]:
        context = contextvars.copy_context()

        def call() -> Any:
            try:
                return context.run(method, *arguments)
            except StopIteration as error:
                # No future takes one: it would never be done, and the lane would wait for it.
                raise RuntimeError("the handler raised StopIteration") from error

        return asyncio.get_running_loop().run_in_executor(self._threads, call)


async def _forget_cancellation(deadline: Deadline) -> None:
    """Undo the cancellations of a lane's task, unless it is to end."""
    # What the handler asked for and hasn't met yet is thrown at the next wait.
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    if deadline.ended:
        raise asyncio.CancelledError
    while deadline.task.cancelling():
        deadline.task.uncancel()
