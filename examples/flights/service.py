"""The service that the actors call: a small HTTP server in a process of its own, which can go down.

python -m understudy.examples.flights.service [PORT [LEDGER]]

It prints its URL on a line once it listens. A request may be repeated: a notice is sent once per idempotency
key, and what is ordered or cancelled for a booking is done once. LEDGER is the SQLite file that says so,
`notices.sqlite3` unless named. To see what sagas make of a service in trouble:

curl -d '{"refuse": 0.1, "fail": 0.1, "hang": 0.03, "lie": 0.03}' http://127.0.0.1:8470/trouble
"""

import argparse
import json
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from understudy.examples.flights.bookings import ACCOUNTS, Bookings
from understudy.examples.flights.client import BOOKING_TIMEOUT_SECONDS
from understudy.examples.flights.ledger import Ledger
from understudy.examples.flights.trouble import Fate, Trouble

DEFAULT_PORT = 8470
DEFAULT_LEDGER = "notices.sqlite3"
# A service worth a circuit breaker takes its time. Who is killed meanwhile never hears what came of a notice.
ANSWER_SECONDS = 0.04
# By then the client has given up.
SILENCE_SECONDS = 1.5 * BOOKING_TIMEOUT_SECONDS

STATUS = {
    Fate.WORKS: HTTPStatus.CREATED,
    Fate.REPEATED: HTTPStatus.OK,
    Fate.REFUSED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Fate.FAILS: HTTPStatus.INTERNAL_SERVER_ERROR,
    Fate.DOWN: HTTPStatus.SERVICE_UNAVAILABLE,
}


class Handler(BaseHTTPRequestHandler):
    """POST and DELETE of what there is, as JSON, each with an Idempotency-Key.

    POST /notices; POST /seats, /charges and /messages with {"booking": "UA1", "amount": 1} and DELETE with
    {"booking": "UA1"}; GET /ledger. POST /down with {"seconds": 3}, and POST /trouble with the shares of
    `Trouble`, tell it how to behave.
    """

    protocol_version = "HTTP/1.1"
    server: "Service"

    def do_GET(self) -> None:
        """Show the ledger."""
        if self.path == "/ledger":
            bookings = self.server.bookings
            accounts = {
                "entries": [entry._asdict() for entry in bookings.entries()],
                "booking_requests": bookings.fates(),
            }
            self._answer(HTTPStatus.OK, self.server.ledger.report() | accounts)
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"no such page: {self.path}"})

    def do_POST(self) -> None:
        """Accept a notice or an order, or be told how to behave."""
        self._accept()

    def do_DELETE(self) -> None:
        """Cancel what was ordered for a booking."""
        self._accept()

    def _accept(self) -> None:
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self._dispatch(f"{self.command} {self.path}", body)
        except (ValueError, TypeError, KeyError) as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": f"the body can't be read: {error!r}"})

    def _dispatch(self, what: str, body: Any) -> None:
        account = self.path[1:]
        if what == "POST /notices":
            status = self.server.ledger.accept(self.headers["Idempotency-Key"] or "", body)
            if status < HTTPStatus.BAD_REQUEST:
                time.sleep(self.server.answer_seconds)
            self._answer(status, {"status": status.phrase})
        elif what == "POST /down":
            self.server.ledger.go_down(float(body["seconds"]))
            self._answer(HTTPStatus.OK, {"status": "down"})
        elif what == "POST /trouble":
            self.server.bookings.trouble = msgspec.convert(body, Trouble)
            self._answer(HTTPStatus.OK, {"status": "told"})
        elif account in ACCOUNTS:
            self._book(account, body)
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"no such page: {self.path}"})

    def _book(self, account: str, body: Any) -> None:
        key, booking, down = self.headers["Idempotency-Key"], str(body["booking"]), self.server.ledger.is_down
        if not key:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": "an Idempotency-Key is needed"})
            return
        if self.command == "DELETE":
            result = self.server.bookings.cancel(key, account, booking, down=down)
        else:
            amount = int(body["amount"])
            if amount < 1:
                raise ValueError(f"the amount is {amount}")
            result = self.server.bookings.order(key, account, booking, amount, down=down)
        status = STATUS.get(result.fate)
        if status is None:
            time.sleep(SILENCE_SECONDS)
            self.close_connection = True
            return
        if status < HTTPStatus.BAD_REQUEST:
            time.sleep(self.server.answer_seconds)
        self._answer(status, {"entry": result.entry, "error": result.error})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing per request: the ledger is the record."""

    def _answer(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Service(ThreadingHTTPServer):
    """The HTTP server on loopback.

    Args:
        port: 0 takes any free one.
        ledger: the path of its ledger.
        answer_seconds: how long an accepted notice waits for its answer.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, port: int = DEFAULT_PORT, ledger: str = ":memory:", *, answer_seconds: float = 0.0
    ) -> None:
        self.ledger = Ledger(ledger)
        self.bookings = Bookings(ledger)
        self.answer_seconds = answer_seconds
        super().__init__(("127.0.0.1", port), Handler)

    def server_close(self) -> None:
        """Stop listening, and close the ledgers."""
        super().server_close()
        self.ledger.close()
        self.bookings.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that is gone before its answer: it was killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m understudy.examples.flights.service")
    parser.add_argument("port", nargs="?", type=int, default=DEFAULT_PORT)
    parser.add_argument("ledger", nargs="?", default=DEFAULT_LEDGER)
    arguments = parser.parse_args()
    with Service(arguments.port, arguments.ledger, answer_seconds=ANSWER_SECONDS) as service:
        sys.stdout.write(f"{service.url}\n")
        sys.stdout.flush()
        try:
            service.serve_forever()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
