"""The probes of a real node: what they answer while it works, and while parts of it don't."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.launched import Launched
from support.nats import NatsServer
from support.probing import BYSTANDER, INNER, PATHS, RECORDER, probe


@pytest.fixture
def run(nats_server: NatsServer, tmp_path: Path) -> Iterator[Launched]:
    """A node that is ready."""
    with Launched(tmp_path / "node", "support.apps:app", servers=nats_server.url) as launched:
        yield launched.wait_until_ready()


@pytest.mark.parametrize("path", PATHS)
def test_a_probe_may_be_a_head_and_is_never_kept(run: Launched, path: str) -> None:
    """Over one connection too; a HEAD has the same status and headers, and no body."""
    connection = http.client.HTTPConnection(urlsplit(run.url).netloc, timeout=60)
    answers = []
    for method in ("GET", "HEAD", "POST"):
        connection.request(method, path)
        response = connection.getresponse()
        answers.append((response.status, response.read(), response.headers))
    connection.close()
    (status, body, headers), (head_status, head_body, head_headers), (post_status, _, _) = answers
    assert (status, head_status, post_status) == (200, 200, 405)
    assert body.startswith(b"{")
    assert head_body == b""
    for one in (headers, head_headers):
        assert one["Content-Type"] == "application/json"
        assert one["Cache-Control"] == "no-store"
        assert one["Content-Length"] == str(len(body))


@pytest.mark.timeout(400)
def test_every_answer_is_right_whatever_hangs(nats_server: NatsServer, tmp_path: Path) -> None:
    """What fails is named, and nothing else; the launcher is asked often, from load to drain."""
    phases = probe(nats_server, tmp_path / "node", count=30)
    assert {name: phase.wrong for name, phase in phases.items() if phase.wrong} == {}
    assert phases["under full load"].reasons == {}
    assert phases["a cell is stopped"].reasons[BYSTANDER].startswith(("silent for ", "starting (hang: "))
    assert "hang: " in phases["a cell holds the GIL"].reasons[RECORDER]
    assert phases["a supervisor is stopped"].reasons.keys() <= {INNER, BYSTANDER}
    assert phases["the broker is away"].reasons["broker"] == "disconnected"
    assert phases["during a drain"].reasons == {"launcher": "draining"}
