"""What a scrape says, for tests to ask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

Series: TypeAlias = tuple[str, frozenset[tuple[str, str]]]


class Scrape:
    """One answer of `/metrics`."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self.samples: dict[Series, float] = {}
        for family in self.families:
            for sample in family.samples:
                series = (sample.name, frozenset(sample.labels.items()))
                assert series not in self.samples, f"twice: {series}"
                self.samples[series] = sample.value

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels; there has to be one."""
        found = [
            value
            for (sample, its_labels), value in self.samples.items()
            if sample == name and its_labels >= frozenset(labels.items())
        ]
        assert found, f"no {name}{labels}"
        return sum(found)

    def has(self, name: str, **labels: str) -> bool:
        """Whether there is a series of this name with these labels."""
        wanted = frozenset(labels.items())
        return any(sample == name and its_labels >= wanted for sample, its_labels in self.samples)

    def counters(self) -> Mapping[Series, float]:
        """All that may only grow."""
        growing = {
            sample.name
            for family in self.families
            if family.type in ("counter", "histogram")
            for sample in family.samples
        }
        return {series: value for series, value in self.samples.items() if series[0] in growing}


class Scraping:
    """Scrapes again and again, in a thread, for the length of a `with` block.

    Args:
        get: returns the text.

    Attributes:
        scrapes: how many there were.
        went_back: counters that went backwards or away, each with its values.
    """

    def __init__(self, get: Callable[[], str]) -> None:
        self._get = get
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="scraping", daemon=True)
        self.scrapes = 0
        self.went_back: list[tuple[Series, float, float | None]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        before: Mapping[Series, float] = {}
        try:
            while not self._ending.wait(0.02):
                now = Scrape(self._get()).counters()
                self.went_back += [
                    (series, value, now.get(series))
                    for series, value in before.items()
                    if series not in now or now[series] < value
                ]
                before = now
                self.scrapes += 1
        except BaseException as error:
            self._failure = error
