"""What tests of an app use: its log entries as they would be written."""

from understudy.runtime.telemetry.entries import Entry
from understudy.runtime.testing.logs import capture_logs

__all__ = ["Entry", "capture_logs"]
