"""Which deliveries are traced, and whether traces are asked for at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from understudy.actors.errors import ConfigurationError
from understudy.runtime.jetstream.headers import encode
from understudy.runtime.telemetry import tracing
from understudy.runtime.telemetry.sampling import Sampler, sampler_settings
from understudy.runtime.telemetry.trace import begin_trace
from understudy.runtime.telemetry.tracing import asked_for, load_export

LOW, HIGH = "1" * 32, "f" * 32
SPAN = "00f067aa0ba902b7"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


def block(trace_id: str, flags: str, name: str = "traceparent", version: str = "00") -> bytes:
    """Return the headers of a message of this trace."""
    return encode({"Nats-Msg-Id": "1", name: f"{version}-{trace_id}-{SPAN}-{flags}"})


@pytest.mark.parametrize("name", ["traceparent", "Traceparent"])
@pytest.mark.parametrize("version", ["00", "cc"])
def test_a_publisher_s_decision_holds(name: str, version: str) -> None:
    """Whatever the ratio says of traces that begin here."""
    for ratio in (0.0, 1.0):
        sampler = Sampler("S", ratio, is_parent_based=True)
        flags = ("00", "01", "02", "03", "fe", "ff")
        decisions = [sampler.samples(block(LOW, flag, name, version), 1) for flag in flags]
        assert decisions == [False, True, False, True, False, True]


def test_a_decision_can_be_one_s_own() -> None:
    """By the trace's id, as every service would decide that does so."""
    sampler = Sampler("S", 0.5, is_parent_based=False)
    assert [sampler.samples(block(trace_id, "00"), 1) for trace_id in (LOW, HIGH)] == [True, False]
    assert [sampler.samples(block(trace_id, "01"), 1) for trace_id in (LOW, HIGH)] == [True, False]


@pytest.mark.parametrize("headers", [b"", encode({"a": "b"}), block("0" * 32, "01"), block(LOW[1:], "01")])
@pytest.mark.parametrize("is_parent_based", [True, False])
def test_of_traces_that_begin_here_as_many_are_sampled_as_asked(
    headers: bytes, *, is_parent_based: bool
) -> None:
    """An invalid header counts as none. OpenTelemetry's own sampler says the same of the trace's id."""
    sampler = Sampler("S", 0.01, is_parent_based=is_parent_based)
    theirs = TraceIdRatioBased(0.01)
    sampled = {sequence for sequence in range(1, 10_001) if sampler.samples(headers, sequence)}
    assert 95 <= len(sampled) <= 105
    for sequence in [*sorted(sampled)[:20], *range(1, 200)]:
        trace_id = int(begin_trace("S", sequence, 5).trace_id, 16)
        decision = theirs.should_sample(None, trace_id, "").decision
        assert (decision is Decision.RECORD_AND_SAMPLE) is (sequence in sampled)


def test_all_and_none_are_sampled_too() -> None:
    """The bounds are exact."""
    everything, nothing = (Sampler("S", ratio, is_parent_based=True) for ratio in (1.0, 0.0))
    assert all(everything.samples(b"", sequence) for sequence in range(1000))
    assert not any(nothing.samples(b"", sequence) for sequence in range(1000))


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("", "", (1.0, True)),
        ("always_on", "0.3", (1.0, False)),
        ("always_off", "", (0.0, False)),
        ("traceidratio", "0.25", (0.25, False)),
        ("parentbased_always_on", "", (1.0, True)),
        ("parentbased_always_off", "", (0.0, True)),
        ("parentbased_traceidratio", "0.01", (0.01, True)),
        (" ParentBased_TraceIdRatio ", "", (1.0, True)),
    ],
)
def test_the_sampler_is_named_by_the_standard_variables(
    name: str, argument: str, expected: tuple[float, bool]
) -> None:
    """Ratio, and whether a publisher's decision holds."""
    environment = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}
    assert sampler_settings(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"OTEL_TRACES_SAMPLER": "jaeger_remote"},
            "OTEL_TRACES_SAMPLER is 'jaeger_remote'; it may be parentbased_always_on, "
            "parentbased_always_off, parentbased_traceidratio, always_on, always_off, traceidratio",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1 %"},
            "OTEL_TRACES_SAMPLER_ARG is '1 %'; it should be a ratio from 0 to 1",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1.5"},
            "OTEL_TRACES_SAMPLER_ARG is '1.5'; it should be a ratio from 0 to 1",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            "OTEL_TRACES_EXPORTER is 'zipkin'; 'zipkin' is none of otlp, console, none",
        ),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'; it may be http/protobuf, grpc",
        ),
    ],
)
def test_what_is_not_known_is_refused(environment: dict[str, str], message: str) -> None:
    """At the start, with what may be said instead."""
    with pytest.raises(ConfigurationError) as caught:
        asked_for(ENDPOINT | environment)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_SAMPLER": "nonsense"},
        ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_traces_are_not_asked_for(environment: dict[str, str]) -> None:
    """By nothing at all, or by a variable that says no."""
    assert asked_for(environment) is None


def test_traces_are_asked_for_by_an_endpoint_or_an_exporter() -> None:
    """The protocol of traces goes before that of all signals."""
    one = asked_for(ENDPOINT)
    assert one is not None
    assert (one.otlp, one.console, one.protocol, one.ratio) == (True, False, "http/protobuf", 1.0)
    two = asked_for({"OTEL_TRACES_EXPORTER": "console, otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"})
    assert two is not None
    assert (two.otlp, two.console, two.protocol) == (True, True, "grpc")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "it should be a whole number above 0"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "511", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE is 512; it may be at most"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1", "it should be a whole number above 0"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2049", "it may be at most OTEL_BSP_MAX_QUEUE_SIZE, 2048"),
    ],
)
def test_a_queue_that_opentelemetry_would_refuse_is_refused_first(
    name: str, value: str, problem: str
) -> None:
    """Else each cell would fail, again and again."""
    with pytest.raises(ConfigurationError, match=name) as caught:
        asked_for({**ENDPOINT, name: value})
    assert problem in str(caught.value)
    assert asked_for({**ENDPOINT, name: "512"}) is not None


@pytest.mark.parametrize("name", ["OTEL_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"])
def test_a_limit_that_opentelemetry_refuses_is_named(name: str) -> None:
    """Whether it is refused when its module is loaded or later."""
    code = "import os; from understudy.runtime.telemetry.tracing import load_export; load_export(os.environ)"
    environment = {**os.environ, **ENDPOINT, name: "-1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True
    )
    assert "ConfigurationError: OpenTelemetry refuses one of its variables: " in ended.stderr
    assert name in ended.stderr


def test_what_is_missing_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with how to do without; nothing is missing where nothing is asked for."""
    monkeypatch.setitem(tracing.MODULES, "http/protobuf", "opentelemetry.exporter.of_nobody")
    load_export({})
    with pytest.raises(ConfigurationError) as caught:
        load_export(ENDPOINT)
    assert str(caught.value) == (
        "traces are asked for by OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_ENDPOINT, and what they need "
        "isn't installed (No module named 'opentelemetry.exporter.of_nobody'); pip install "
        "'understudy[otel]', or set OTEL_TRACES_EXPORTER=none"
    )


def test_a_cell_s_code_loads_nothing_of_opentelemetry() -> None:
    """Not even its API, on the path of every delivery."""
    code = (
        "import sys, understudy.runtime.cell.host, understudy.runtime.jetstream.publisher\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "[]\n"
