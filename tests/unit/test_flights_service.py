"""The service sends each notice once, writes down what it was asked, and can be down for a while."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.flights_service import serving
from support.running import until
from understudy.examples.flights import client
from understudy.examples.flights import service as flights_service
from understudy.examples.flights.client import Refused, ServiceUnavailable, cancel, order, post_notice
from understudy.examples.flights.ledger import Ledger
from understudy.examples.flights.service import Service
from understudy.examples.flights.trouble import Fate

EMPTY: dict[str, Any] = {"notices": {}, "requests": 0, "repeated": 0, "refused": 0, "conflicts": 0}
UNBOOKED = {"entries": [], "booking_requests": dict.fromkeys(Fate, 0)}


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(Service(port=0)) as service:
        yield service


def call(
    service: Service, method: str, path: str, body: bytes | None = None, *, key: str = ""
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", service.server_port, timeout=60)
    try:
        connection.request(method, path, body, {"Idempotency-Key": key})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_a_notice_is_sent_once_however_often_it_is_posted(service: Service) -> None:
    for _ in range(3):
        post_notice(service.url, "FLIGHTS-7", {"carrier": "UA"})
    assert call(service, "GET", "/ledger") == (
        200,
        EMPTY | UNBOOKED | {"notices": {"FLIGHTS-7": {"carrier": "UA"}}, "requests": 3, "repeated": 2},
    )


def test_the_order_of_its_fields_makes_no_other_notice(service: Service) -> None:
    for body in (b'{"carrier": "UA", "flight": 1}', b'{"flight": 1, "carrier": "UA"}'):
        call(service, "POST", "/notices", body, key="FLIGHTS-7")
    assert service.ledger.report()["repeated"] == 1


def test_another_notice_under_a_used_key_is_refused(service: Service) -> None:
    post_notice(service.url, "FLIGHTS-7", {"carrier": "UA"})
    with pytest.raises(ServiceUnavailable, match="answered 409 Conflict"):
        post_notice(service.url, "FLIGHTS-7", {"carrier": "AA"})
    assert service.ledger.report() == EMPTY | {
        "notices": {"FLIGHTS-7": {"carrier": "UA"}},
        "requests": 2,
        "conflicts": 1,
    }


def test_who_is_gone_before_the_answer_finds_the_notice_sent_and_is_known_by_its_key() -> None:
    """A cell that is killed meanwhile can't know; its replacement asks again."""
    with serving(Service(port=0, answer_seconds=0.01)) as service:
        body = b'{"carrier": "UA"}'
        with closing(socket.create_connection(("127.0.0.1", service.server_port))) as gone:
            gone.sendall(
                b"POST /notices HTTP/1.1\r\nIdempotency-Key: FLIGHTS-7\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
        post_notice(service.url, "FLIGHTS-7", {"carrier": "UA"})
        # The first is perhaps not even read when the second is answered.
        until(lambda: service.ledger.report()["requests"] == 2)
        assert service.ledger.report() == EMPTY | {
            "notices": {"FLIGHTS-7": {"carrier": "UA"}},
            "requests": 2,
            "repeated": 1,
        }


def test_the_ledger_outlives_the_service_though_it_is_killed(tmp_path: Path) -> None:
    """What was sent before a kill -9 is known by its key to the service that is started again."""
    path = str(tmp_path / "notices.sqlite3")
    command = (sys.executable, "-m", "understudy.examples.flights.service", "0", path)
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                post_notice(process.stdout.readline().strip(), "FLIGHTS-7", {"carrier": "UA"})
            finally:
                os.kill(process.pid, signal.SIGKILL)
    with closing(Ledger(path)) as ledger:
        assert ledger.report() == EMPTY | {
            "notices": {"FLIGHTS-7": {"carrier": "UA"}},
            "requests": 2,
            "repeated": 1,
        }


def test_while_it_is_down_notices_are_refused_and_not_written_down(service: Service) -> None:
    assert call(service, "POST", "/down", b'{"seconds": 60}') == (200, {"status": "down"})
    with pytest.raises(ServiceUnavailable, match="answered 503 Service Unavailable"):
        post_notice(service.url, "FLIGHTS-7", {"carrier": "UA"})
    assert call(service, "GET", "/ledger")[1] == EMPTY | UNBOOKED | {"requests": 1, "refused": 1}
    call(service, "POST", "/down", b'{"seconds": 0}')
    post_notice(service.url, "FLIGHTS-7", {"carrier": "UA"})


def test_what_is_ordered_is_done_once_and_can_be_cancelled(service: Service) -> None:
    for _ in range(2):
        assert order(service.url, "seats", "UA1.reserve.do", booking="UA1") == 1
    assert order(service.url, "charges", "UA1.charge.do", booking="UA1", amount=80) == 2
    for _ in range(2):
        cancel(service.url, "charges", "UA1.charge.undo", booking="UA1")
    ledger = call(service, "GET", "/ledger")[1]
    assert [tuple(entry.values()) for entry in ledger["entries"]] == [
        (1, "seats", "UA1", 1),
        (2, "charges", "UA1", 80),
        (3, "charges", "UA1", -80),
    ]
    assert ledger["booking_requests"] == dict.fromkeys(Fate, 0) | {"works": 3, "repeated": 2}
    with pytest.raises(Refused, match="it is cancelled already"):
        order(service.url, "charges", "UA1.charge.do-again", booking="UA1", amount=80)


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ({"refuse": 1}, Refused),
        ({"fail": 1}, ServiceUnavailable),
        ({"hang": 1}, TimeoutError),
        ({"lie": 1}, TimeoutError),
    ],
)
def test_in_trouble_it_refuses_or_fails_or_keeps_silent(
    service: Service, monkeypatch: pytest.MonkeyPatch, trouble: dict[str, float], error: type[Exception]
) -> None:
    """Who is silent has done nothing, or has done it: only the next request can tell."""
    monkeypatch.setattr(client, "BOOKING_TIMEOUT_SECONDS", 0.05 if error is TimeoutError else 60)
    assert call(service, "POST", "/trouble", json.dumps(trouble).encode())[0] == 200
    with pytest.raises(error):
        order(service.url, "seats", "UA1.reserve.do", booking="UA1")
    # It may not have read it when the client has lost patience.
    until(lambda: len(service.bookings.entries()) == (trouble == {"lie": 1}))
    monkeypatch.setattr(client, "BOOKING_TIMEOUT_SECONDS", 60)
    call(service, "POST", "/trouble", b"{}")
    assert order(service.url, "seats", "UA1.reserve.do", booking="UA1") == 1
    assert len(service.bookings.entries()) == 1


def test_the_silence_outlasts_the_clients_patience() -> None:
    assert flights_service.SILENCE_SECONDS > client.BOOKING_TIMEOUT_SECONDS


def test_an_order_of_nothing_is_no_cancellation(service: Service) -> None:
    body = b'{"booking": "UA1", "amount": 0}'
    assert call(service, "POST", "/seats", body, key="UA1.reserve.do")[0] == 400
    assert service.bookings.entries() == []


def test_while_it_is_down_no_booking_is_changed(service: Service) -> None:
    call(service, "POST", "/down", b'{"seconds": 60}')
    with pytest.raises(ServiceUnavailable, match="answered 503 Service Unavailable"):
        cancel(service.url, "seats", "UA1.reserve.undo", booking="UA1")
    assert service.bookings.entries() == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/notices", b"{}", 400),
        ("/notices", b"{", 400),
        ("/down", b"{}", 400),
        ("/down", b'{"seconds": "long"}', 400),
        ("/trouble", b'{"explode": 1}', 400),
        ("/seats", b'{"amount": 1}', 400),
        ("/seats", b'{"booking": "UA1", "amount": 1}', 400),
        ("/trouble", b"[]", 400),
        ("/elsewhere", b"{}", 404),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    service: Service, path: str, body: bytes, status: int
) -> None:
    assert call(service, "POST", path, body)[0] == status
