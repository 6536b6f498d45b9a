"""What supervisors and cells have in common as Thespian actors."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import structlog
from thespian.actors import Actor, ThespianWatch, WatchMessage

CRASHED = 70

_log = structlog.get_logger(__name__)


class ControlActor(Actor):  # type: ignore[misc]
    """An actor that handles each message once, and watches file descriptors.

    Thespian would run a handler that raised a second time and let the actor live on; here the process
    ends, and its supervisor sees that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watched: dict[int, Callable[[], None]] = {}

    def receive(self, message: object, sender: Any) -> None:
        """Handle one message, in the process' main thread.

        Whatever it raises ends the process with status 70.

        Args:
            message: what was sent, one of Thespian's own too.
            sender: an actor's address.
        """
        raise NotImplementedError

    def watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Call back, in the main thread, each time the descriptor is readable.

        Args:
            descriptor: an open file descriptor; it stays the caller's.
            callback: takes no argument; reads what makes the descriptor readable, or calls `unwatch`.
        """
        self._watched[descriptor] = callback

    def unwatch(self, descriptor: int) -> None:
        """Stop watching; call it before the descriptor is closed."""
        self._watched.pop(descriptor, None)

    def receiveMessage(self, message: object, sender: Any) -> ThespianWatch:  # noqa: N802 - Thespian's name
        """Take a message from Thespian."""
        try:
            if isinstance(message, WatchMessage):
                for descriptor in message.ready:
                    # An earlier callback of this round may have ended the watch.
                    if callback := self._watched.get(descriptor):
                        callback()
            else:
                self.receive(message, sender)
        except BaseException:  # noqa: BLE001 - Thespian would swallow it and go on
            _log.exception("control actor crashed", message=type(message).__name__)
            os._exit(CRASHED)
        # A list that isn't returned with every single message is dropped.
        return ThespianWatch(list(self._watched))
