"""The launcher's HTTP routes: liveness, readiness, health, metrics and the tree, and which there are."""

from __future__ import annotations

import ipaddress
from typing import Protocol

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

OK = 200
FORBIDDEN = 403
NOT_FOUND = 404
NOT_ALLOWED = 405
UNAVAILABLE = 503
# What each page tells.
PAGES = {
    "/livez": "whether the launcher and the supervisors answer; 503 if a restart of the whole would help",
    "/readyz": "whether everything that the app declares is at work; 503 if not, and what isn't",
    "/healthz": "both",
    "/metrics": "what Prometheus scrapes",
    "/api/tree": "supervisors and cells as they are now; from this machine only",
}


class Probed(Protocol):
    """What the routes ask; all but `metrics` in the launcher's event loop, where it must not block."""

    def not_alive(self) -> dict[str, str]:
        """Return the parts that a restart of the whole would mend, each with why; never the broker."""

    def not_ready(self) -> dict[str, str]:
        """Return the parts that aren't at work, each with why."""

    def tree(self) -> object:
        """Return the tree as something that msgspec can write as JSON."""

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics as an Accept header asks for them, and their type; called in a thread."""


def build_routes(probed: Probed, host: str) -> Starlette:
    """Return the HTTP application.

    Args:
        probed: who answers.
        host: the name or address that it is bound to, which a Host header may then name.
    """

    async def livez(_: Request) -> Response:
        return _report("alive", probed.not_alive())

    async def readyz(_: Request) -> Response:
        return _report("ready", probed.not_ready())

    async def healthz(_: Request) -> Response:
        alive, ready = probed.not_alive(), probed.not_ready()
        return _json(
            UNAVAILABLE if alive or ready else OK,
            {"healthy": not alive and not ready, "not_alive": alive, "not_ready": ready},
        )

    async def tree(request: Request) -> Response:
        # Probes may come under any name; what tells more than yes or no may not, since a page that
        # rebinds its own name to this address could otherwise read it in a browser.
        if not (is_loopback(host) and _names_us(request.url.hostname, host)):
            return _json(FORBIDDEN, {"error": "the API is open on loopback only"})
        return _json(OK, probed.tree())

    async def prometheus(request: Request) -> Response:
        if is_loopback(host) and not _names_us(request.url.hostname, host):
            return _json(FORBIDDEN, {"error": "on loopback the metrics are for who asks for this machine"})
        body, content_type = await run_in_threadpool(probed.metrics, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    pages = {
        "/livez": livez,
        "/readyz": readyz,
        "/healthz": healthz,
        "/metrics": prometheus,
        "/api/tree": tree,
    }
    return Starlette(
        routes=[Route("/", _index), *(Route(path, page) for path, page in pages.items())],
        exception_handlers={NOT_FOUND: _not_found, NOT_ALLOWED: _not_allowed},
    )


def is_loopback(host: str | None) -> bool:
    """Return whether a name or address can only mean this machine.

    Args:
        host: as it stands in a setting or a Host header, without port.
    """
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


async def _index(_: Request) -> Response:
    return _json(OK, {"pages": PAGES})


async def _not_found(request: Request, _: Exception) -> Response:
    return _json(NOT_FOUND, {"error": f"there is no {request.url.path}", "pages": PAGES})


async def _not_allowed(request: Request, _: Exception) -> Response:
    # Whoever wants to change something takes the command line.
    response = _json(NOT_ALLOWED, {"error": f"{request.url.path} is only for reading, not {request.method}"})
    response.headers["Allow"] = "GET, HEAD"
    return response


def _names_us(named: str | None, host: str) -> bool:
    return is_loopback(named) or named == host


def _report(question: str, failing: dict[str, str]) -> Response:
    return _json(UNAVAILABLE if failing else OK, {question: not failing, "failing": failing})


def _json(status: int, body: object) -> Response:
    # What was so a moment ago says nothing of now.
    headers = {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")
