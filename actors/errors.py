"""Every error that understudy raises on purpose.

UnderstudyError
├── DeclarationError (also a TypeError)   a class, handler, child or app is declared wrongly
├── ConfigurationError                    settings, target, directory or port; names every problem
│   └── TopologyError                     a stream or consumer on the server differs or clashes
├── CodecError
│   ├── EncodeError                       a value or subject can't be put on the wire
│   └── DecodeError                       a body can't be read as what the handler takes
├── BrokerError
│   ├── BrokerUnreachable                 no server answers
│   ├── BrokerRefused                     a server answers and says no
│   └── PublishError                      an event was not confirmed by its stream
├── AskError                              what was asked has no answer
│   ├── AskTimeout                        none came before the deadline
│   ├── AskRejected                       the handler has refused it, by Reject
│   └── AskFailed                         it was given up, or can't be answered
├── StateError                            an actor's state can't be stored or read
├── CircuitOpen                           a circuit breaker lets no call through for now
└── BulkheadFull                          so many guarded calls run already that one more waited in vain

`Retry` and `Reject` (understudy.actors.outcomes) are outcomes of a handler, not errors.
"""

from collections.abc import Iterable


class UnderstudyError(Exception):
    """The base of every error here."""


class DeclarationError(UnderstudyError, TypeError):
    """A class, handler, child or app is declared wrongly; the text says what to change."""


class ConfigurationError(UnderstudyError):
    """The system can't start as it is configured.

    `problems` holds every problem that was found, one text each; the message is one line per problem.
    """

    problems: tuple[str, ...]

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["ConfigurationError"], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class TopologyError(ConfigurationError):
    """A stream or consumer on the server differs from what is declared, or clashes with it."""


class CodecError(UnderstudyError):
    """A value couldn't cross the wire."""


class EncodeError(CodecError):
    """A value can't be encoded, or a subject can't be made from it."""


class DecodeError(CodecError):
    """A body can't be decoded, or its subject says something else than the body."""


class BrokerError(UnderstudyError):
    """The broker didn't do what was asked of it."""


class BrokerUnreachable(BrokerError):
    """No server answers at the configured addresses."""


class BrokerRefused(BrokerError):
    """A server answers but refuses: credentials, permissions, no JetStream, too old."""


class PublishError(BrokerError):
    """An event was not confirmed by a stream.

    `code` is the server's error code, None if no answer came at all.
    """

    subject: str
    code: int | None

    def __init__(self, message: str, *, subject: str, code: int | None = None) -> None:
        super().__init__(message)
        self.subject = subject
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return _publish_error, (str(self), self.subject, self.code)


def _publish_error(message: str, subject: str, code: int | None) -> PublishError:
    return PublishError(message, subject=subject, code=code)


class AskError(UnderstudyError):
    """What was asked has no answer; `subject` says where it was asked."""

    subject: str

    def __init__(self, message: str, *, subject: str) -> None:
        super().__init__(message)
        self.subject = subject

    def __reduce__(self) -> tuple[object, ...]:
        return _ask_error, (type(self), str(self), self.subject)


def _ask_error(kind: type[AskError], message: str, subject: str) -> AskError:
    return kind(message, subject=subject)


class AskTimeout(AskError):
    """No answer came before the deadline; whether it is or will be handled isn't known."""


class AskRejected(AskError):
    """The handler has refused it: the text is what its Reject says. Asking again is no use."""


class AskFailed(AskError):
    """It was given up, or can't be answered.

    `reason` is that of its dead letter (`undecodable`, `exhausted`, `crashed`), or `repeated`: an event of
    its idempotency key was handled before; `held` or `failed`: it waits for a circuit breaker or for its
    next attempt beyond the deadline.
    """

    reason: str

    def __init__(self, message: str, *, subject: str, reason: str) -> None:
        super().__init__(message, subject=subject)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _ask_failed, (str(self), self.subject, self.reason)


def _ask_failed(message: str, subject: str, reason: str) -> AskFailed:
    return AskFailed(message, subject=subject, reason=reason)


class StateError(UnderstudyError):
    """An actor's state can't be stored as it is, or what is stored can't be read."""


class CircuitOpen(UnderstudyError):
    """A circuit breaker is open and lets no call through.

    A handler that lets it pass has its delivery held until the breaker lets a trial through;
    one that catches it settles the delivery by what it returns. That of a breaker which neither the actor nor
    the app has is an error as any other.
    """

    breaker: str
    retry_after_seconds: float

    def __init__(self, breaker: str, retry_after_seconds: float) -> None:
        super().__init__(f"circuit breaker {breaker!r} is open; next trial in {retry_after_seconds:.1f} s")
        self.breaker = breaker
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[type["CircuitOpen"], tuple[str, float]]:
        return type(self), (self.breaker, self.retry_after_seconds)


class BulkheadFull(UnderstudyError):
    """A breaker's `max_concurrent` calls were running all the time that this one could wait.

    It says nothing of the service, and nothing of the event: a handler that lets it pass has its delivery
    tried again in place, and no attempt is counted.
    """

    breaker: str
    max_concurrent: int

    def __init__(self, breaker: str, max_concurrent: int) -> None:
        super().__init__(
            f"circuit breaker {breaker!r}: {max_concurrent} calls are running, which is its max_concurrent, "
            "and none has ended in time"
        )
        self.breaker = breaker
        self.max_concurrent = max_concurrent

    def __reduce__(self) -> tuple[type["BulkheadFull"], tuple[str, int]]:
        return type(self), (self.breaker, self.max_concurrent)
