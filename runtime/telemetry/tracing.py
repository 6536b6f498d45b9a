"""Whether traces are asked for, by OpenTelemetry's standard variables, and what is missing for them.

The launcher reads them before anything starts, and so does each cell. Where no traces are asked for, nothing
of OpenTelemetry is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Literal

import msgspec

from understudy.actors.errors import ConfigurationError
from understudy.runtime.telemetry.sampling import sampler_settings

Relation = Literal["parent", "link"]
Protocol = Literal["http/protobuf", "grpc"]
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS = ("otlp", "console", "none")
# With what OpenTelemetry takes by default.
_BATCHES = {
    "OTEL_BSP_MAX_QUEUE_SIZE": 2048,
    "OTEL_BSP_SCHEDULE_DELAY": 5000,
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": 512,
}
MODULES: dict[Protocol, str] = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}
_DISTRIBUTIONS: Mapping[Protocol, str] = {
    "http/protobuf": "'understudy[otel]'",
    "grpc": "'understudy[otel]' opentelemetry-exporter-otlp-proto-grpc",
}


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of spans.

    Args:
        otlp: whether they go to a collector.
        console: whether they are printed on stderr.
        protocol: how the collector is spoken to.
        ratio: how many of the traces that begin here are sampled.
        is_parent_based: whether a publisher's decision holds, if there is one.
    """

    otlp: bool
    console: bool
    protocol: Protocol
    ratio: float
    is_parent_based: bool


def asked_for(environment: Mapping[str, str]) -> Export | None:
    """Return what becomes of spans, None if none are to be made.

    They are asked for by OTEL_TRACES_EXPORTER, or by an endpoint for OTLP; OTEL_SDK_DISABLED=true and
    OTEL_TRACES_EXPORTER=none say no.

    Args:
        environment: the process's.

    Raises:
        ConfigurationError: a variable says something that we don't know.
    """
    if _value(environment, "OTEL_SDK_DISABLED").lower() == "true":
        return None
    exporters = _value(environment, "OTEL_TRACES_EXPORTER")
    if not exporters and any(_value(environment, name) for name in _ENDPOINTS):
        exporters = "otlp"
    names = {name.strip().lower() for name in exporters.split(",")} - {""}
    if unknown := names.difference(_EXPORTERS):
        raise ConfigurationError(
            f"OTEL_TRACES_EXPORTER is {exporters!r}; {min(unknown)!r} is none of {', '.join(_EXPORTERS)}"
        )
    if not names or "none" in names:
        return None
    ratio, is_parent_based = sampler_settings(environment)
    _check_batches(environment)
    return Export(
        otlp="otlp" in names,
        console="console" in names,
        protocol=_protocol(environment),
        ratio=ratio,
        is_parent_based=is_parent_based,
    )


def load_export(environment: Mapping[str, str]) -> None:
    """See that traces can be made if they are asked for, and load what makes them.

    Called in the launcher: what is forked from it has it loaded then, and a replacement isn't kept waiting.

    Raises:
        ConfigurationError: as of `asked_for`; or something isn't installed.
    """
    export = asked_for(environment)
    if export is None:
        return
    wanted = ["understudy.runtime.telemetry.spans", *([MODULES[export.protocol]] if export.otlp else [])]
    for module in wanted:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigurationError(
                f"traces are asked for by OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_ENDPOINT, and what they "
                f"need isn't installed ({error}); pip install {_DISTRIBUTIONS[export.protocol]}, or set "
                f"OTEL_TRACES_EXPORTER=none"
            ) from error
        except ValueError as error:
            raise _refused(error) from error
    try:
        # Made in each cell too, which would fail again and again.
        importlib.import_module("opentelemetry.sdk.trace").SpanLimits()
    except ValueError as error:
        raise _refused(error) from error


def _check_batches(environment: Mapping[str, str]) -> None:
    """Refuse what OpenTelemetry's queue of spans would refuse in each cell."""
    sizes = {}
    for name, default in _BATCHES.items():
        text = _value(environment, name)
        sizes[name] = int(text) if text.isdecimal() else 0 if text else default
        if sizes[name] <= 0:
            raise ConfigurationError(f"{name} is {text!r}; it should be a whole number above 0")
    queue, _, batch = sizes.values()
    if batch > queue:
        raise ConfigurationError(
            f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE is {batch}; it may be at most OTEL_BSP_MAX_QUEUE_SIZE, {queue}"
        )


def _refused(error: ValueError) -> ConfigurationError:
    return ConfigurationError(f"OpenTelemetry refuses one of its variables: {error}")


def _protocol(environment: Mapping[str, str]) -> Protocol:
    named = next(filter(None, (_value(environment, name).lower() for name in _PROTOCOLS)), "http/protobuf")
    if named not in MODULES:
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {named!r}; it may be {', '.join(MODULES)}")
    return named


def _value(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name, "").strip()
