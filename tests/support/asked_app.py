"""An app whose actor answers with its process, but for the first run of all, which never ends."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from understudy.actors.actor import Actor
from understudy.actors.context import Context
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.outcomes import Reject
from understudy.actors.policies import RetryPolicy
from understudy.runtime.app import App
from understudy.runtime.stream import Stream


class WhoAreYou(Event, subject="asked.who"):
    """Asks for the answering process."""


class Me(Event):
    """Answers."""

    pid: int


class Teller(Actor):
    """Writes each run into the file that RECORD_FILE names."""

    @handles(reply=Me)
    async def who(self, event: WhoAreYou) -> Me:
        """Answer, unless this is the first run."""
        record = Path(os.environ["RECORD_FILE"])
        is_first = not record.exists()
        with record.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if is_first:
            await asyncio.Event().wait()
        return Me(pid=os.getpid())


class AskThrough(Event, subject="asked.through"):
    """Has one actor ask another."""

    deed: str = ""
    timeout_seconds: float = 60.0


class Do(Event, subject="asked.{kind}.deed"):
    """What it asks."""

    kind: str
    deed: str


class Front(Actor, retry=RetryPolicy(max_attempts=1)):
    """Asks."""

    @handles(reply=Me)
    async def through(self, event: AskThrough, ctx: Context) -> Me:
        """Pass the answer on."""
        request = Do(kind="small", deed=event.deed)
        return await ctx.ask(request, expects=Me, timeout_seconds=event.timeout_seconds)


class Back(Actor):
    """Is asked."""

    @handles(reply=Me)
    async def deed(self, event: Do) -> Me:
        """Refuse, or answer: late ones when the file GATE exists."""
        if event.deed == "reject":
            raise Reject("nobody does that")
        while event.deed == "late" and not Path(os.environ["GATE"]).exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return Me(pid=os.getpid())


_STREAM = Stream("ASKED", subjects=["asked.>"])
through = App("asked", streams=[_STREAM], children=[Front, Back])
app = App("asked", streams=[_STREAM], children=[Teller])
