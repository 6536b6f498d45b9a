"""Which deliveries are traced, decided before anything is made for them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from understudy.actors.errors import ConfigurationError
from understudy.runtime.telemetry.trace import GOLDEN, LOW_BITS, low_half, read_trace, stream_salt

_PARENT_BASED = "parentbased_"
_WITH_ARGUMENT = "traceidratio"
_ALWAYS = {"always_on": 1.0, "always_off": 0.0}
_NAMES = [
    prefix + name for prefix in (_PARENT_BASED, "") for name in (*_ALWAYS, _WITH_ARGUMENT)
]  # fmt: skip
# As most libraries write it; whatever else is read in full.
_LINE = b"\r\ntraceparent: 00-"
_TRACE_ID, _FLAG, _END = len(_LINE), len(_LINE) + 51, len(_LINE) + 52
_ODD = frozenset(b"13579bdf")


class Sampler:
    """Decides by the trace's flag, or for a trace that has none by its id, as OTEL_TRACES_SAMPLER says.

    Args:
        stream: whose deliveries these are.
        ratio: how many of the traces that begin here are sampled.
        is_parent_based: whether the publisher's decision holds, if there is one.
    """

    def __init__(self, stream: str, ratio: float, *, is_parent_based: bool) -> None:
        self._stream = stream
        self._salt = stream_salt(stream)
        self._bound = round(ratio * (1 << 64))
        self._is_parent_based = is_parent_based

    def samples(self, block: bytes, sequence: int) -> bool:
        """Return whether a delivery is traced; the same for each attempt at it, in every actor.

        Args:
            block: its headers as on the wire.
            sequence: its place in the stream.
        """
        if block:
            start = block.find(_LINE)
            if start >= 0 and self._is_parent_based and block[start + _END : start + _END + 2] == b"\r\n":
                # Whether the rest is valid makes a difference only to what is to be recorded.
                return block[start + _FLAG] in _ODD and self._samples_other(block, sequence)
            return self._samples_other(block, sequence)
        return (sequence * GOLDEN + self._salt) & LOW_BITS < self._bound

    def _samples_other(self, block: bytes, sequence: int) -> bool:
        trace = read_trace(block)
        if trace is None:
            return low_half(self._stream, sequence) < self._bound
        return trace.is_sampled if self._is_parent_based else int(trace.trace_id[16:], 16) < self._bound


def sampler_settings(environment: Mapping[str, str]) -> tuple[float, bool]:
    """Return the ratio and whether it is only for traces that begin here.

    Args:
        environment: with OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG, or without.

    Raises:
        ConfigurationError: they say something that we don't know.
    """
    name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower() or _NAMES[0]
    if name not in _NAMES:
        raise ConfigurationError(f"OTEL_TRACES_SAMPLER is {name!r}; it may be {', '.join(_NAMES)}")
    is_parent_based = name.startswith(_PARENT_BASED)
    kind = name.removeprefix(_PARENT_BASED)
    if kind != _WITH_ARGUMENT:
        return _ALWAYS[kind], is_parent_based
    argument = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1.0"
    try:
        ratio = float(argument)
    except ValueError:
        ratio = math.nan
    if not 0 <= ratio <= 1:
        raise ConfigurationError(f"OTEL_TRACES_SAMPLER_ARG is {argument!r}; it should be a ratio from 0 to 1")
    return ratio, is_parent_based
