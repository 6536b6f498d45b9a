"""The client of the service: plain http.client, which knows no proxies and no retries."""

import http.client
from http import HTTPStatus
from urllib.parse import urlsplit

import msgspec

TIMEOUT_SECONDS = 2.0
# A booking is asked for again before anyone gets impatient.
BOOKING_TIMEOUT_SECONDS = 1.0


class ServiceUnavailable(Exception):
    """The service answered that it can't do it now, or that it won't."""


class Refused(Exception):
    """The service answered that it won't ever, and has done nothing."""


class _Entry(msgspec.Struct):
    entry: int


class _Refusal(msgspec.Struct):
    error: str


def post_notice(service_url: str, key: str, notice: object) -> None:
    """Post one notice under its idempotency key; blocks. Raises if the service is away or refuses."""
    _request(service_url, "POST", "/notices", key, notice, TIMEOUT_SECONDS)


def order(service_url: str, account: str, key: str, *, booking: str, amount: int = 1) -> int:
    """Have a seat reserved, money charged or a message sent, once for each key; blocks.

    Args:
        service_url: where the service is.
        account: `seats`, `charges` or `messages`.
        key: the idempotency key.
        booking: whose it is.
        amount: how much of it.

    Returns:
        The number of its entry in the service's ledger.

    Raises:
        Refused: there is none, now or later; or it was cancelled before it came.
        ServiceUnavailable: the service can't do it now.
        OSError, http.client.HTTPException: there was no answer, and it may be done or not.
    """
    body = {"booking": booking, "amount": amount}
    answer = _request(service_url, "POST", f"/{account}", key, body, BOOKING_TIMEOUT_SECONDS)
    return msgspec.json.decode(answer, type=_Entry).entry


def cancel(service_url: str, account: str, key: str, *, booking: str) -> None:
    """Have undone what was ordered for a booking, if anything was; blocks. Raises as `order` does."""
    _request(service_url, "DELETE", f"/{account}", key, {"booking": booking}, BOOKING_TIMEOUT_SECONDS)


def _request(
    service_url: str, method: str, path: str, key: str, body: object, timeout_seconds: float
) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(service_url).netloc, timeout=timeout_seconds)
    try:
        connection.request(
            method,
            path,
            msgspec.json.encode(body),
            {"Content-Type": "application/json", "Idempotency-Key": key},
        )
        response = connection.getresponse()
        answer = response.read()
        if response.status == HTTPStatus.UNPROCESSABLE_ENTITY:
            raise Refused(msgspec.json.decode(answer, type=_Refusal).error)
        if response.status >= 300:
            raise ServiceUnavailable(f"{service_url} answered {response.status} {response.reason}")
        return answer
    finally:
        connection.close()
