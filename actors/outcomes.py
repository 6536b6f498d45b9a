"""What a handler raises to settle its delivery otherwise than by returning.

These are control flow: neither is an UnderstudyError, so that a handler's own
`except UnderstudyError` doesn't swallow them.
"""

from understudy.actors.names import check_seconds


class Retry(Exception):
    """Counts the attempt as failed and has the event delivered again.

    After `delay_seconds`, or with the backoff of the actor's RetryPolicy if that is None.
    """

    delay_seconds: float | None

    def __init__(self, delay_seconds: float | None = None) -> None:
        if delay_seconds is not None:
            check_seconds(delay_seconds, "Retry: delay_seconds", zero=True)
        super().__init__(delay_seconds)
        self.delay_seconds = delay_seconds

    def __str__(self) -> str:
        return "retry" if self.delay_seconds is None else f"retry in {self.delay_seconds} s"


class Reject(Exception):
    """Makes the event a dead letter at once, with `reason`, without another attempt."""

    reason: str

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = str(reason)
