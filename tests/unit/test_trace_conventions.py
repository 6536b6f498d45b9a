"""The names that spans have, beside those of OpenTelemetry's own package."""

from __future__ import annotations

from opentelemetry.semconv._incubating.attributes import messaging_attributes, service_attributes
from opentelemetry.semconv.attributes import error_attributes, server_attributes

from understudy.runtime.telemetry import conventions


def test_names_are_those_of_the_conventions() -> None:
    """Each that isn't ours is in the package that lists them, which keeps messaging's in a private module."""
    ours = {
        value
        for name, value in vars(conventions).items()
        if name.isupper() and not value.startswith("understudy.")
    } - {conventions.NATS}
    modules = (messaging_attributes, error_attributes, server_attributes, service_attributes)
    theirs = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    assert ours <= theirs
    assert {"messaging.system", "error.type", "server.port", "service.instance.id"} <= ours
