"""The testing kit's capture_logs: what it collects, and that it leaves all as it was."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import structlog

from understudy.config.log_rules import LogRules
from understudy.runtime.telemetry.logs import configure_logging
from understudy.runtime.testing import capture_logs


def test_both_libraries_are_collected_as_they_would_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """With their fields, their secrets hidden, and nothing on stderr."""
    with capture_logs(context={"cell": "shop/0"}, redact=["iban"]) as entries:
        structlog.get_logger("shop").debug("sold", price=3, iban="CH93")
        logging.getLogger("shop").warning("cannot reach %s", "nats://u:hunter2@h")
    assert [(entry["level"], entry["event"], entry["logger"]) for entry in entries] == [
        ("debug", "sold", "shop"),
        ("warning", "cannot reach nats://***@h", "shop"),
    ]
    assert (entries[0]["price"], entries[0]["iban"]) == (3, "***")
    assert {entry["cell"] for entry in entries} == {"shop/0"}
    assert capsys.readouterr() == ("", "")


def test_what_is_below_the_level_is_not_collected() -> None:
    """As it wouldn't be written."""
    with capture_logs(level="warning") as entries:
        structlog.get_logger().info("no")
        logging.getLogger("x").info("no")
        structlog.get_logger().warning("yes")
    assert [entry["event"] for entry in entries] == ["yes"]


def test_an_exception_is_collected_as_text() -> None:
    """One can look for what it says."""
    with capture_logs() as entries:
        try:
            raise ValueError("lost")
        except ValueError:
            structlog.get_logger().exception("failed")
    assert entries[0]["exception"].endswith("ValueError: lost")


def test_repeats_are_all_collected() -> None:
    """A test wants to count them."""
    with capture_logs() as entries:
        for _ in range(100):
            structlog.get_logger().error("failed")
    assert len(entries) == 100


def test_loggers_made_before_are_collected_and_work_on_after() -> None:
    """A module's logger is made when it is imported."""
    log = structlog.get_logger("shop")
    with capture_logs() as first:
        log.info("one")
    with capture_logs() as second:
        log.info("two")
    assert ([entry["event"] for entry in first], [entry["event"] for entry in second]) == (["one"], ["two"])


@pytest.mark.parametrize("configured", [True, False])
def test_all_is_as_it_was_afterwards(configured: bool) -> None:
    """Also when the block raises; whether or not logging was configured."""
    if configured:
        configure_logging(level="error", format="json", context={}, rules=LogRules())
    root, nats = logging.getLogger(), logging.getLogger("nats")

    def state() -> Any:
        return (
            *(root.handlers[:], root.level, nats.handlers[:], nats.propagate, nats.level),
            *(structlog.get_config(), structlog.is_configured()),
        )

    before = state()
    with pytest.raises(ValueError, match="x"), capture_logs(level="debug"):
        raise ValueError("x")
    assert state() == before
