"""Asks as a collector sees them: one trace, from who has asked to the reply."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.nats import NatsServer
from support.otlp import Collector, Span
from support.running import running

ASK = "ask asked.{kind}.deed"
PROCESS = "process asked.{kind}.deed"


def ask(server: NatsServer, collector: Collector, **request: object) -> int:
    """Ask by the command, with traces; return its exit code."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "understudy.runtime", "ask", "asked.through", "--servers", server.url),
            *("--json", json.dumps(request), "--timeout", "60"),
        ],
        env={**os.environ, **collector.environment},
        check=False,
        capture_output=True,
    ).returncode


def test_an_ask_is_one_trace_from_the_asker_to_the_reply(nats_server: NatsServer, tmp_path: Path) -> None:
    """Of a program and of a handler; with an error, a timeout and a late reply as they are."""
    gate = tmp_path / "gate"
    with Collector() as collector:
        environment: dict[str, Any] = {**collector.environment, "GATE": str(gate)}
        with running(nats_server.url, tmp_path, "support.asked_app:through", **environment) as run:
            assert ask(nats_server, collector) == 0
            assert ask(nats_server, collector, deed="reject") == 1
            assert ask(nats_server, collector, deed="late", timeout_seconds=3) == 1
            gate.touch()
            collector.wait_for(
                lambda spans: len([span for span in spans if span.name == PROCESS]) == 3, "the late answer"
            )
            assert run.terminate() == 0
        roots = collector.spans("ask")
        answered, rejected, late = ({s.name: s for s in collector.spans(trace_id=r.trace_id)} for r in roots)
    assert tree(answered) == {
        "ask": "",
        "publish": "ask",
        "process asked.through": "publish",
        ASK: "process asked.through",
        "publish asked.{kind}.deed": ASK,
        PROCESS: "publish asked.{kind}.deed",
        "ack asked.{kind}.deed": PROCESS,
        "ack asked.through": "process asked.through",
    }
    assert {name: span.kind for name, span in answered.items() if not name.startswith("ack")} == {
        "ask": "CLIENT",
        "publish": "PRODUCER",
        "process asked.through": "CONSUMER",
        ASK: "CLIENT",
        "publish asked.{kind}.deed": "PRODUCER",
        PROCESS: "CONSUMER",
    }
    assert {span.status for span in answered.values()} == {"UNSET"}
    assert outcome(answered[PROCESS]) == outcome(answered["process asked.through"]) == "answered"
    # From the request until the answer is there.
    assert answered[ASK].started_at <= answered["publish asked.{kind}.deed"].started_at
    assert answered[ASK].ended_at > answered[PROCESS].started_at
    assert answered[ASK].attributes["messaging.destination.name"] == "asked.small.deed"
    assert answered[ASK].attributes["messaging.operation.name"] == "ask"
    assert answered["ask"].resource["service.name"] == "understudy-ask"

    assert tree(rejected)[PROCESS] == "publish asked.{kind}.deed"
    assert [outcome(rejected[name]) for name in (PROCESS, "process asked.through")] == [
        "rejected",
        "exhausted",
    ]
    assert errors(rejected) == {
        PROCESS: "understudy.actors.outcomes.Reject",
        ASK: "understudy.actors.errors.AskRejected",
        "process asked.through": "understudy.actors.errors.AskRejected",
        "ask": "understudy.actors.errors.AskFailed",
    }

    assert tree(late)[PROCESS] == "publish asked.{kind}.deed"
    assert outcome(late[PROCESS]) == "answered"
    assert late[PROCESS].ended_at > late[ASK].ended_at
    assert errors(late) == {
        ASK: "understudy.actors.errors.AskTimeout",
        "process asked.through": "understudy.actors.errors.AskTimeout",
        "ask": "understudy.actors.errors.AskFailed",
    }


def tree(trace: dict[str, Span]) -> dict[str, str]:
    """Return the name of each span's parent."""
    by_id = {span.span_id: name for name, span in trace.items()}
    return {name: by_id[span.parent_id] if span.parent_id else "" for name, span in trace.items()}


def errors(trace: dict[str, Span]) -> dict[str, object]:
    """Return the error of each span that has failed."""
    return {name: span.attributes["error.type"] for name, span in trace.items() if span.status == "ERROR"}


def outcome(span: Span) -> object:
    """Return what the reply says that a handler run has sent."""
    return span.event("understudy.reply")["understudy.outcome"]
