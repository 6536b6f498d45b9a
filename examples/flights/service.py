"""The service that the notifier calls: a small HTTP server in a process of its own, which can go down.

python -m understudy.examples.flights.service [PORT]

It prints its URL on a line once it listens. A request may be repeated: one notice per idempotency key.
"""

import json
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DEFAULT_PORT = 8470


class Ledger:
    """The notices that were accepted, by idempotency key, and whether it is down; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notices: dict[str, Any] = {}
        self._repeated = 0
        self._refused = 0
        self._down_until = 0.0

    def go_down(self, seconds: float) -> None:
        """Refuse every notice for so long."""
        with self._lock:
            self._down_until = time.monotonic() + seconds

    def accept(self, key: str, notice: Any) -> HTTPStatus:
        """Write a notice down, unless the service is down, or the key was used before."""
        if not key:
            return HTTPStatus.BAD_REQUEST
        with self._lock:
            if time.monotonic() < self._down_until:
                self._refused += 1
                return HTTPStatus.SERVICE_UNAVAILABLE
            if key not in self._notices:
                self._notices[key] = notice
                return HTTPStatus.CREATED
            if self._notices[key] != notice:
                return HTTPStatus.CONFLICT
            self._repeated += 1
            return HTTPStatus.OK

    def report(self) -> dict[str, Any]:
        """All notices, how many requests repeated one, and how many were refused during an outage."""
        with self._lock:
            return {"notices": dict(self._notices), "repeated": self._repeated, "refused": self._refused}


class Handler(BaseHTTPRequestHandler):
    """POST /notices with an Idempotency-Key, GET /ledger, and POST /down with {"seconds": 3}."""

    protocol_version = "HTTP/1.1"
    server: "Service"

    def do_GET(self) -> None:
        """Show the ledger."""
        if self.path == "/ledger":
            self._answer(HTTPStatus.OK, self.server.ledger.report())
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"no such page: {self.path}"})

    def do_POST(self) -> None:
        """Accept a notice, or go down."""
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            if self.path == "/notices":
                status = self.server.ledger.accept(self.headers["Idempotency-Key"] or "", body)
                self._answer(status, {"status": status.phrase})
            elif self.path == "/down":
                self.server.ledger.go_down(float(body["seconds"]))
                self._answer(HTTPStatus.OK, {"status": "down"})
            else:
                self._answer(HTTPStatus.NOT_FOUND, {"error": f"no such page: {self.path}"})
        except (ValueError, TypeError, KeyError) as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": f"the body can't be read: {error!r}"})

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
    """The HTTP server on loopback; port 0 takes any free one."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = DEFAULT_PORT) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.ledger = Ledger()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


def main() -> None:
    """Serve until the process is ended."""
    with Service(*map(int, sys.argv[1:2])) as service:
        sys.stdout.write(f"{service.url}\n")
        sys.stdout.flush()
        try:
            service.serve_forever()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
