"""The client of the notices service: plain http.client, which knows no proxies and no retries."""

import http.client
from urllib.parse import urlsplit

import msgspec

TIMEOUT_SECONDS = 2.0


class ServiceUnavailable(Exception):
    """The service answered that it can't take a notice now, or that it won't."""


def post_notice(service_url: str, key: str, notice: object) -> None:
    """Post one notice under its idempotency key; blocks. Raises if the service is away or refuses."""
    connection = http.client.HTTPConnection(urlsplit(service_url).netloc, timeout=TIMEOUT_SECONDS)
    try:
        connection.request(
            "POST",
            "/notices",
            msgspec.json.encode(notice),
            {"Content-Type": "application/json", "Idempotency-Key": key},
        )
        response = connection.getresponse()
        response.read()
        if response.status >= 300:
            raise ServiceUnavailable(f"{service_url} answered {response.status} {response.reason}")
    finally:
        connection.close()
