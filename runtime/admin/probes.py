"""The launcher's HTTP routes: liveness, readiness, health and the tree."""

from __future__ import annotations

import ipaddress
from typing import Protocol

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

OK = 200
FORBIDDEN = 403
UNAVAILABLE = 503


class Probed(Protocol):
    """What the routes ask; each call is made in the launcher's event loop and must not block."""

    def not_alive(self) -> dict[str, str]:
        """Return the parts that a restart of the whole would mend, each with why; never the broker."""

    def not_ready(self) -> dict[str, str]:
        """Return the parts that aren't at work, each with why."""

    def tree(self) -> object:
        """Return the tree as something that msgspec can write as JSON."""


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

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/healthz", healthz),
            Route("/api/tree", tree),
        ]
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


def _names_us(named: str | None, host: str) -> bool:
    return is_loopback(named) or named == host


def _report(question: str, failing: dict[str, str]) -> Response:
    return _json(UNAVAILABLE if failing else OK, {question: not failing, "failing": failing})


def _json(status: int, body: object) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")
