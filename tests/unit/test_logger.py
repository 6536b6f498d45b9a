"""Where it goes what the library logs: as structlog says, and if that isn't configured, as `logging` says."""

from __future__ import annotations

import logging

import pytest
import structlog

from understudy.runtime.telemetry.logger import get_logger
from understudy.runtime.testing import capture_logs


@pytest.fixture
def _unconfigured() -> None:
    """Leave structlog as it is in a program that knows nothing of it; the next test has it as always."""
    structlog.reset_defaults()


@pytest.mark.usefixtures("_unconfigured")
def test_without_structlog_it_is_a_record_of_the_standard_library(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under its name, from the level up that is set for it, with its fields in the text and no secrets."""
    log = get_logger("understudy.test")
    with caplog.at_level(logging.INFO, "understudy.test"):
        log.debug("not this")
        log.info("connected")
        log.bind(name="test").warning("broker error", error="no nats://u:hunter2@h", password="hunter2")
        try:
            raise ValueError("lost")
        except ValueError:
            log.exception("failed")
    assert [(one.name, one.levelname, one.getMessage()) for one in caplog.records] == [
        ("understudy.test", "INFO", "connected"),
        (
            "understudy.test",
            "WARNING",
            "broker error name='test' error='no nats://***@h' password='***'",
        ),
        ("understudy.test", "ERROR", "failed"),
    ]
    assert "ValueError: lost" in caplog.text
    assert capsys.readouterr() == ("", "")
    assert not structlog.is_configured()


@pytest.mark.usefixtures("_unconfigured")
def test_it_is_looked_up_at_each_call_as_long_as_it_may_change(caplog: pytest.LogCaptureFixture) -> None:
    """A program may configure structlog late; the loggers of modules have been made before that."""
    log = get_logger("understudy.test")
    log.warning("before")
    with capture_logs() as entries:
        log.warning("within", number=1)
    log.warning("after")
    with structlog.testing.capture_logs() as captured:
        log.warning("captured", number=2)
    assert [(entry["event"], entry["logger"], entry["number"]) for entry in entries] == [
        ("within", "understudy.test", 1)
    ]
    assert captured == [{"event": "captured", "number": 2, "log_level": "warning"}]
    assert [one.getMessage() for one in caplog.records] == ["before", "after"]


def test_a_logger_that_may_be_kept_is_structlogs_own(caplog: pytest.LogCaptureFixture) -> None:
    """From its first use on nothing is looked up, as in cells: a call costs what structlog's costs."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO), cache_logger_on_first_use=True
    )
    log, plain = get_logger("understudy.test"), structlog.get_logger("understudy.test")
    assert type(log) is type(plain)
    assert type(log.bind()) is type(plain.bind())
    assert log.bind() is log.bind()
    assert caplog.records == []
