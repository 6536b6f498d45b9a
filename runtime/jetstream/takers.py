"""Whose consumers take what is published to a subject, for whoever waits for an answer in vain."""

from __future__ import annotations

from typing import Any

import msgspec
from nats.aio.client import Client

from understudy.actors.subjects import matches
from understudy.runtime.jetstream import api


class Taker(msgspec.Struct, frozen=True):
    """A consumer.

    Args:
        stream: whose.
        name: its own.
        pending: how many messages wait for it or are being handled, the one that is asked about too.
        is_pulled: whether somebody asks it for messages now; one who is busy doesn't.
    """

    stream: str
    name: str
    pending: int
    is_pulled: bool


async def takers_of(client: Client, subject: str) -> tuple[list[str], list[Taker]]:
    """Return the streams that take a subject, and their consumers that do.

    Args:
        client: a connection.
        subject: a literal one.

    Raises:
        BrokerError: JetStream doesn't answer, or not us.
    """
    answer = await api.request(client, "STREAM.NAMES", {"subject": subject})
    streams: list[str] = answer.get("streams") or []
    return streams, [
        _taker(stream, info)
        for stream in streams
        for info in await api.list_consumers(client, stream)
        if _takes(info["config"], subject)
    ]


def _takes(config: dict[str, Any], subject: str) -> bool:
    filters = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
    return any(matches(pattern, subject) for pattern in filters)


def _taker(stream: str, info: dict[str, Any]) -> Taker:
    return Taker(
        stream,
        info["name"],
        info["num_pending"] + info["num_ack_pending"],
        is_pulled=bool(info.get("num_waiting") or info.get("push_bound")),
    )
