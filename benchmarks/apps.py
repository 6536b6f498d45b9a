"""The apps whose cells are measured: an actor that does nothing with what it is given."""

from __future__ import annotations

from typing import Any

from benchmarks.feeds import HEADED, LARGE, PLAIN, UNIFORM, ZIPF, Feed
from benchmarks.readings import Reading
from understudy import Actor, App, Stream, handles


def _sink(feed: Feed, **options: Any) -> App:
    class Sink(Actor, **options):
        """Takes readings; whatever time it takes is the runtime's."""

        @handles(feed.subject)
        async def reading(self, event: Reading) -> None:
            """Do nothing."""

    stream = Stream(feed.stream, subjects=[feed.subject], storage="file")
    return App("bench", streams=[stream], children=[Sink])


plain = _sink(PLAIN)
large = _sink(LARGE)
headed = _sink(HEADED)
unkeyed = _sink(UNIFORM)
uniform = _sink(UNIFORM, key="station")
zipf = _sink(ZIPF, key="station")
