"""The service writes each notice down once, and can be down for a while."""

import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from understudy.examples.flights.client import ServiceUnavailable, post_notice
from understudy.examples.flights.service import Service


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(port=0) as service:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield service
        service.shutdown()
        thread.join()


def call(service: Service, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", service.server_port, timeout=5)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_a_notice_is_written_down_once_however_often_it_is_posted(service: Service) -> None:
    for _ in range(3):
        post_notice(service.url, "FLIGHTS-7", {"carrier": "UA"})
    assert call(service, "GET", "/ledger") == (
        200,
        {"notices": {"FLIGHTS-7": {"carrier": "UA"}}, "repeated": 2, "refused": 0},
    )


def test_another_notice_under_a_used_key_is_refused(service: Service) -> None:
    post_notice(service.url, "FLIGHTS-7", {"carrier": "UA"})
    with pytest.raises(ServiceUnavailable, match="answered 409 Conflict"):
        post_notice(service.url, "FLIGHTS-7", {"carrier": "AA"})


def test_while_it_is_down_notices_are_refused_and_not_written_down(service: Service) -> None:
    assert call(service, "POST", "/down", b'{"seconds": 60}') == (200, {"status": "down"})
    with pytest.raises(ServiceUnavailable, match="answered 503 Service Unavailable"):
        post_notice(service.url, "FLIGHTS-7", {"carrier": "UA"})
    assert call(service, "GET", "/ledger")[1] == {"notices": {}, "repeated": 0, "refused": 1}
    call(service, "POST", "/down", b'{"seconds": 0}')
    post_notice(service.url, "FLIGHTS-7", {"carrier": "UA"})


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/notices", b"{}", 400),
        ("/notices", b"{", 400),
        ("/down", b"{}", 400),
        ("/down", b'{"seconds": "long"}', 400),
        ("/elsewhere", b"{}", 404),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    service: Service, path: str, body: bytes, status: int
) -> None:
    assert call(service, "POST", path, body)[0] == status
