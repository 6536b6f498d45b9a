"""`understudy ask`: JSON in, JSON out, and an exit code for each way in which there is no answer."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.cells import Bench, app_of, bench
from support.nats import NatsServer, configured_server
from understudy.actors.actor import Actor
from understudy.actors.event import Event
from understudy.actors.handlers import handles
from understudy.actors.idempotency import Idempotency
from understudy.actors.outcomes import Reject
from understudy.actors.policies import RetryPolicy
from understudy.runtime.cli.entry import main
from understudy.runtime.jetstream.api import NO_JETSTREAM


class QuoteFor(Event, subject="orders.quote"):
    item: str


class Quote(Event):
    item: str
    cents: int


class Prices(Actor, retry=RetryPolicy(max_attempts=1), idempotency=Idempotency(window_seconds=60)):
    @handles(reply=Quote)
    async def quote(self, event: QuoteFor) -> Quote:
        match event.item:
            case "pear":
                raise Reject("pear isn't sold here")
            case "plum":
                raise ValueError("the list is lost")
        return Quote(item=event.item, cents=5)


class Audit(Actor):
    """Answers nobody."""

    @handles
    async def quote(self, event: QuoteFor) -> None: ...


@pytest.fixture
async def orders(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(nats_server.url, tmp_path) as made:
        yield made


async def understudy_ask(orders: Bench, *arguments: str) -> int:
    """Run the command in this process, beside the cell."""
    return await asyncio.to_thread(main, ["ask", *arguments, "--servers", orders.url])


async def test_the_answer_is_printed_and_why_there_is_none_is_an_exit_code(
    orders: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await orders.cell(app_of(Prices))
    capsys.readouterr()

    async def said(*arguments: str) -> tuple[int, str, str]:
        status = await understudy_ask(orders, "orders.quote", "--timeout", "30", *arguments)
        captured = capsys.readouterr()
        # The cell of this process logs there too.
        return status, captured.out, captured.err

    status, out, _ = await said("--json", '{"item": "äpple"}')
    assert (status, out.endswith("\n"), json.loads(out)) == (0, True, {"item": "äpple", "cents": 5})
    request = tmp_path / "request.json"
    request.write_text('{\n  "item": "apple"\n}\n')
    assert (await said("--file", str(request)))[:2] == (0, '{"item":"apple","cents":5}\n')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"item": "fig"}')))
    assert (await said("--file", "-"))[:2] == (0, '{"item":"fig","cents":5}\n')

    status, out, errors = await said("--json", '{"item": "pear"}')
    assert (status, out) == (1, "")
    assert "understudy: orders.quote: rejected: pear isn't sold here\n" in errors
    status, out, errors = await said("--json", '{"item": "plum"}')
    assert (status, out) == (1, "")
    assert "understudy: orders.quote: exhausted: ValueError: the list is lost\n" in errors
    status, out, errors = await said("--json", '{"item": 5}')
    assert (status, out) == (1, "")
    assert "understudy: orders.quote: undecodable: QuoteFor: Expected `str`, got `int`" in errors

    once = ("--json", '{"item": "apple"}', "--idempotency-key", "one")
    assert (await said(*once))[0] == 0
    status, out, errors = await said(*once)
    assert (status, out, "orders.quote: repeated: " in errors) == (1, "", True)


async def test_no_answer_in_time_says_who_should_have_answered(
    orders: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """75 if somebody takes it, 3 if nobody does."""

    async def errors(subject: str, seconds: str = "0.2") -> tuple[int, str]:
        capsys.readouterr()
        status = await understudy_ask(orders, subject, "--json", "{}", "--timeout", seconds)
        captured = capsys.readouterr()
        assert captured.out == ""
        return status, captured.err[captured.err.index("understudy: ") :]

    async def unanswered(subject: str) -> tuple[int, str]:
        """Ask with longer timeouts if a machine that stands still lets the first pass before it is asked."""
        for seconds in ("0.2", "4", "30"):
            status, text = await errors(subject, seconds)
            if "no stream has confirmed" not in text:
                break
        first, _, rest = text.partition("\n")
        assert first == f"understudy: {subject}: no answer within {seconds} s"
        return status, rest

    run = await orders.cell(app_of(Audit))
    status, text = await unanswered("orders.quote")
    assert status == 75
    assert text.startswith("  it ")
    assert "reply=" in text
    await run.stop()
    status, text = await unanswered("orders.quote")
    left = (await orders.backlog(app_of(Audit))).pending
    waits = "1 waits or is being handled" if left == 1 else f"{left} wait or are being handled"
    assert (status, text) == (
        75,
        f"  nobody pulls from shop-audit, where {waits}: is the app up, and not paused? understudy tree\n",
    )
    assert await unanswered("orders.qoute") == (
        3,
        "  no consumer of the stream ORDERS takes this subject; correct it, or start the app\n",
    )
    assert await errors("nowhere") == (
        3,
        "understudy: nowhere: no stream has confirmed the request within 0.2 s\n"
        "  no stream takes this subject; correct it, or start the app\n",
    )
    assert await errors("nowhere", "30") == (
        3,
        "understudy: nowhere: no stream takes this subject; declare a Stream with it, or correct the "
        "subject\n",
    )


async def test_a_broker_without_jetstream_is_said_to_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 3, however short the time is."""
    arguments = ["ask", "orders.quote", "--json", "{}", "--timeout"]
    async with configured_server() as url:
        for seconds, begin in (
            ("30", "orders.quote: no stream takes this subject, and "),
            ("0.2", "orders.quote: no stream has confirmed the request within 0.2 s\n  "),
        ):
            assert await asyncio.to_thread(main, [*arguments, seconds, "--servers", url]) == 3
            assert capsys.readouterr() == ("", f"understudy: {begin}{NO_JETSTREAM}\n")
