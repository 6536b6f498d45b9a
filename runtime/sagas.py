"""What a saga needs of its app: a stream with timers, and a subject there for what it tells itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from understudy.actors.actor import ActorSpec
from understudy.actors.codec import decoder
from understudy.actors.errors import DeclarationError
from understudy.actors.handlers import HandlerSpec
from understudy.actors.saga import Saga, Signal
from understudy.runtime.specs import StreamSpec
from understudy.runtime.stream import timer_subjects

# No method of a user's has such a name.
SIGNAL = "saga signal"
_KEPT = ("key", "state", "on_failure")


def signal_subject(stream: str, durable: str) -> str:
    """Return the subject of what a saga, or an operator, tells the sagas of a durable."""
    return f"{timer_subjects(stream)[:-1]}sagas.{durable}"


def with_signals(
    spec: ActorSpec,
    saga: type[Saga],
    streams: Mapping[str, StreamSpec],
    stream: str,
    durable: str,
    where: str,
) -> ActorSpec:
    """Return a saga's declaration with the handler of its signals.

    Args:
        spec: its declaration as a child.
        saga: its class.
        streams: the app's.
        stream: which of them it reads.
        durable: its consumer.
        where: names it in errors.

    Raises:
        DeclarationError: a saga can't be run so.
    """
    declared, needs = saga.__understudy__.options, saga.__saga__
    for name in (*_KEPT, "ordered", "idempotency"):
        if getattr(spec.options, name) != getattr(declared, name):
            raise DeclarationError(f"{where}: a saga's {name} can't be overridden; remove it from its Child")
    if spec.options.handler_timeout_seconds <= needs.longest_seconds:
        raise DeclarationError(
            f"{where}: handler_timeout_seconds is {spec.options.handler_timeout_seconds:g}, but a step may "
            f"take {needs.longest_seconds:g}; raise it, or leave it out"
        )
    held = streams[stream]
    if not held.timers:
        raise DeclarationError(
            f"{where} is a saga and reads stream {stream!r}, which has no timers; declare that as "
            f"Stream({stream!r}, …, timers=True)"
        )
    steps = needs.steps.values()
    for step in steps:
        if step.replies and step.reply_timeout_seconds >= (held.max_age_seconds or math.inf):
            raise DeclarationError(
                f"{where}: step {step.name!r} waits {step.reply_timeout_seconds:g} s for a reply, but stream "
                f"{stream!r} drops what is older than {held.max_age_seconds:g} s, its timer too; raise "
                f"max_age_seconds or lower reply_timeout_seconds"
            )
    signals = HandlerSpec(
        method=SIGNAL,
        filter=signal_subject(stream, durable),
        type=Signal,
        raw=False,
        wants_context=True,
        is_async=True,
        batch=None,
        decode=decoder(Signal),
        max_attempts=max(step.max_attempts or spec.options.retry.max_attempts for step in steps),
        has_last_word=True,
    )
    return dataclasses.replace(spec, handlers=(*spec.handlers, signals))
