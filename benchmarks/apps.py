"""The app whose cell is measured: one actor that does nothing with what it is given."""

from __future__ import annotations

from benchmarks.readings import STREAM, SUBJECT, Reading
from understudy import Actor, App, Stream, handles

DURABLE = "bench-sink"


class Sink(Actor, durable=DURABLE):
    """Takes readings; whatever time it takes is the runtime's."""

    @handles
    async def reading(self, event: Reading) -> None:
        """Do nothing."""


app = App("bench", streams=[Stream(STREAM, subjects=[SUBJECT], storage="file")], children=[Sink])
