"""An app whose actor writes down which lane its cell is on.

LANE_FILE takes a line for each event: whether the process has a client of the fast lane.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

from understudy.actors.actor import Actor
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.runtime.app import App
from understudy.runtime.jetstream.fast_lane import FastClient
from understudy.runtime.stream import Stream


class Asked(Event, subject="lanes.asked"):
    """Asks which lane it is."""


class Witness(Actor):
    """Looks for a client of the fast lane among all objects of its process."""

    @handles
    async def asked(self, event: Asked) -> None:
        """Write down whether there is one."""
        # A cell's process freezes what it has when it is ready, and that isn't among the objects.
        gc.unfreeze()
        fast = any(isinstance(found, FastClient) for found in gc.get_objects())
        with Path(os.environ["LANE_FILE"]).open("a") as file:
            file.write(f"{fast}\n")


app = App("lanes", streams=[Stream("LANES", subjects=["lanes.>"])], children=[Witness])
