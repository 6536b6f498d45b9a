"""`understudy dead-letters` against a real server: what it lists, shows, exports and discards."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from support.cells import bench, until
from support.letters import Letters, Result, ended
from support.nats import NatsServer
from understudy.actors.errors import BrokerRefused
from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream.connection import close, connect

# Each test runs several commands, which are processes of their own.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def letters(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Letters]:
    """A broker with the streams of the app shop."""
    async with bench(nats_server.url, tmp_path) as made:
        found = Letters(made.client, nats_server.url)
        await found.open()
        yield found


async def test_list_shows_the_newest_first_and_how_many_more_there_are(letters: Letters) -> None:
    """A line each, within 100 columns; what a terminal would obey is written out."""
    for number in range(1, 4):
        await letters.add(number, error="boom \x1b[31m" + "x" * 300, actor="a-rather-long-name-of-an-actor")
    result = await letters.run("list", "--limit", "2")
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["ID", "AGE", "ACTOR", "REASON", "SUBJECT", "ERROR"]
    assert [line.split()[0] for line in lines[1:]] == ["3", "2"]
    assert all(len(line) <= 100 for line in lines)
    assert "  a-rather-long-name-of-a…  exhausted  orders.placed  boom \\x1b[31mxxx" in lines[1]
    assert result.err == "1 more, all older; --limit 3 shows them\n"


async def test_list_picks_by_actor_reason_and_age(letters: Letters) -> None:
    """All filters that are given hold."""
    await letters.add(1)
    await letters.add(2, actor="shipping")
    await letters.add(3, reason="rejected")
    await letters.add(4, actor="shipping", reason="rejected")
    expected = {
        "": [4, 3, 2, 1],
        "--actor shipping": [4, 2],
        "--reason rejected": [4, 3],
        "--actor billing --reason rejected": [3],
        "--actor nobody": [],
        "--newer-than 1h": [4, 3, 2, 1],
        "--newer-than 1h --actor billing": [3, 1],
        "--older-than 1h": [],
        "--newer-than 0s": [],
        "--older-than 0s": [4, 3, 2, 1],
    }
    for arguments, ids in expected.items():
        result = await letters.run("list", "--json", *arguments.split())
        assert [letter["id"] for letter in result.objects()] == ids, arguments
        assert (result.status, result.err) == (0, "" if ids else "no such dead letters\n")


async def test_list_as_json_says_where_each_came_from(letters: Letters) -> None:
    """One object a line, with the size of the body that wasn't read."""
    await letters.add(7, actor="shipping", durable="shippers", body=b"x" * 1000)
    (letter,) = (await letters.run("list", "--json")).objects()
    assert letter.pop("time").endswith("+00:00")
    assert letter == {
        "id": 1,
        "app": "shop",
        "actor": "shipping",
        "durable": "shippers",
        "reason": "exhausted",
        "error": "ValueError: 7",
        "attempts": 5,
        "stream": "ORDERS",
        "subject": "orders.placed",
        "sequence": 7,
        "trace_id": f"{7:032x}",
        "size": 1000,
    }


@pytest.mark.parametrize("fast_lane", [True, False], ids=["fast lane", "public API"])
async def test_more_letters_than_are_read_at_once_are_all_listed_and_exported(
    letters: Letters, fast_lane: bool
) -> None:
    """Whatever was removed between them."""
    letters.fast_lane = fast_lane
    await asyncio.gather(*(letters.add(number) for number in range(1, 2301)))
    for gone in (*range(400, 700), 1001, 2300):
        await letters.js.delete_msg("SHOP_DEAD_LETTERS", gone)
    left = [number for number in range(1, 2301) if not (400 <= number < 700 or number in (1001, 2300))]
    listed = await letters.run("list", "--json", "--limit", "5000")
    assert [letter["id"] for letter in listed.objects()] == left[::-1]
    exported = await letters.run("export")
    assert [letter["id"] for letter in exported.objects()] == left


BODIES = [
    (msgspec.msgpack.encode({"n": 1}), "application/msgpack", "msgpack", {"n": 1}),
    (msgspec.msgpack.encode([1, b"\xff"]), None, "msgpack", [1, "/w=="]),
    (b'{"n": 1}', "application/json; charset=utf-8", "json", {"n": 1}),
    (b"[1]", None, "json", [1]),
    (b'{"n": ', "application/json", "text", '{"n": '),
    ("grüße\n".encode(), "text/plain", "text", "grüße\n"),
    (b"", "application/json", "text", ""),
    (b"\x1b[31m", "text/plain", "base64", "G1szMW0="),
    (b"\xc1\xff", None, "base64", "wf8="),
    # Keys that JSON hasn't.
    (b"\x81\x92\x01\x02\x03", None, "base64", "gZIBAgM="),
]


@pytest.mark.parametrize("fast_lane", [True, False], ids=["fast lane", "public API"])
async def test_bodies_are_decoded_as_far_as_they_can_be(letters: Letters, fast_lane: bool) -> None:
    """In `export` as in `show --json`."""
    letters.fast_lane = fast_lane
    for number, (body, content_type, _, _) in enumerate(BODIES):
        headers = {} if content_type is None else {"Content-Type": content_type}
        await letters.add(number, body=body, headers=headers | {"Nats-Msg-Id": f"m{number}", "x": "y"})
    exported = await letters.run("export")
    assert exported.err == "10 dead letters exported\n"
    found = exported.objects()
    assert [(letter["body_encoding"], letter["body"]) for letter in found] == [body[2:] for body in BODIES]
    assert found[0]["headers"] == {"Content-Type": "application/msgpack", "Nats-Msg-Id": "m0", "x": "y"}
    assert (found[0]["headers_left_out"], found[0]["body_left_out"]) == ([], False)
    assert (await letters.run("show", "6", "--json")).objects() == [found[5]]


async def test_show_tells_all_of_a_letter(letters: Letters) -> None:
    """For people: why, from where, its headers and its body."""
    await letters.add(7, headers={"Nats-Msg-Id": "m7", "b@d": "1", "note": "\udcff\x1b"})
    result = await letters.run("show", "1")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    time = lines.pop(4)
    assert time.startswith("  time      20")
    assert time.endswith("s ago")
    # What isn't UTF-8 gets through nats-py's parser as it does.
    note = lines.pop(lines.index("  Nats-Msg-Id: m7") + 1)
    assert note.startswith("  note: ")
    assert note.isprintable()
    assert lines == [
        "dead letter 1 of shop",
        "  actor     billing (consumer shop-billing)",
        "  reason    exhausted, after 5 failed attempts",
        "  error     ValueError: 7",
        "  subject   orders.placed",
        "  stored    sequence 7 of stream ORDERS",
        f"  trace id  {7:032x}",
        "headers",
        "  Nats-Msg-Id: m7",
        "  left out: b@d",
        "body (13 bytes, json)",
        "  {",
        '    "number": 7',
        "  }",
    ]


async def test_show_writes_bytes_in_hexadecimal(letters: Letters) -> None:
    """As many as help."""
    await letters.add(1, body=b"\xc1\x00" * 300, headers={})
    lines = (await letters.run("show", "1")).out.splitlines()
    start = lines.index("body (600 bytes, neither MessagePack nor JSON nor text)")
    assert lines[start + 1] == "  " + "c1 00 " * 7 + "c1 00"
    assert lines[-1] == "  and 88 bytes more; --json has all of them"


async def test_a_body_that_was_left_out_is_read_from_its_stream(letters: Letters) -> None:
    """As long as that still has it; another stream of the same name hasn't."""
    body = json.dumps({"x": "y" * (letters.client.max_payload - 200)}).encode()
    ack = await letters.js.publish("orders.placed", body, headers={"Content-Type": "application/json"})
    await letters.add(ack.seq, body=body)
    await letters.add(ack.seq + 1, body=body)
    await letters.add(ack.seq, body=body, stream_created="2020-01-01T00:00:00Z", actor="shipping")
    await letters.add(ack.seq, body=body, stream="NONE", actor="auditing")
    assert (await letters.js.get_msg("SHOP_DEAD_LETTERS", seq=1)).data is None
    found = (await letters.run("export")).objects()
    assert [letter["body"] == json.loads(body) for letter in found] == [True, False, False, False]
    assert [letter["body_encoding"] for letter in found] == ["json", None, None, None]
    assert all(letter["body_left_out"] for letter in found)
    shown = await letters.run("show", "1")
    assert f"body ({len(body)} bytes, json, read from its stream)\n" in shown.out
    shown = await letters.run("show", "2")
    assert shown.out.endswith("body: too large for a letter, and no longer in its stream\n")


async def test_show_of_a_letter_that_is_not_there_is_status_1(letters: Letters) -> None:
    """And says where to look."""
    result = await letters.run("show", "9")
    assert (result.status, result.out) == (1, "")
    assert result.err == "there is no dead letter 9; 'understudy dead-letters list' shows which there are\n"


async def test_an_exported_file_takes_its_name_when_it_is_complete(letters: Letters, tmp_path: Path) -> None:
    """What was there before stays until then, and nothing else is left behind."""
    directory = tmp_path / "out"
    directory.mkdir()
    file = directory / "letters.ndjson"
    file.write_text("old")
    await letters.add(1)
    await letters.add(2)
    missing = await letters.run("export", "--file", str(file), "--app", "none")
    assert (missing.status, file.read_text()) == (1, "old")
    result = await letters.run("export", "--file", str(file), "--reason", "exhausted")
    assert (result.status, result.out, result.err) == (0, "", "2 dead letters exported\n")
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == [1, 2]
    assert stat.S_ISREG(file.stat().st_mode)
    assert list(directory.iterdir()) == [file]
    nowhere = await letters.run("export", "--file", str(directory / "no" / "file"))
    assert nowhere.status == 2
    assert nowhere.err == f"understudy: --file {directory / 'no' / 'file'}: No such file or directory\n"


async def test_what_is_no_file_is_written_as_it_comes(letters: Letters) -> None:
    """There is nothing to put in place of /dev/stdout."""
    await letters.add(1)
    result = await letters.run("export", "--file", "/dev/stdout")
    assert [letter["id"] for letter in result.objects()] == [1]


async def test_discard_removes_what_is_named(letters: Letters) -> None:
    """By id, by filter, or all; an id that isn't there is named, and the others are removed."""
    for number in range(1, 8):
        await letters.add(number, actor="shipping" if number > 5 else "billing")
    result = await letters.run("discard", "2", "1", "99", "2", "--yes")
    assert (result.status, result.out) == (1, "2 discarded\n")
    assert result.err == "dead letter 99: there is none of that number\n"
    result = await letters.run("discard", "--actor", "shipping", "--yes")
    assert (result.status, result.out, result.err) == (0, "2 discarded\n", "")
    assert [letter["id"] for letter in (await letters.run("list", "--json")).objects()] == [5, 4, 3]
    result = await letters.run("discard", "--all", "--yes")
    assert (result.status, result.out) == (0, "3 discarded\n")
    assert await letters.count() == 0
    result = await letters.run("discard", "--all", "--yes")
    assert (result.status, result.out) == (0, "0 discarded\n")


async def test_discard_counts_all_that_many_removals_at_once_removed(letters: Letters) -> None:
    """More than may be on their way together."""
    await asyncio.gather(*(letters.add(number) for number in range(1, 501)))
    assert (await letters.run("discard", "--all", "--yes")).out == "500 discarded\n"
    assert await letters.count() == 0


async def test_discard_asks_nobody_who_is_not_there(letters: Letters) -> None:
    """A script has to say that it means it."""
    await letters.add(1)
    result = await letters.run("discard", "--all")
    assert (result.status, result.out) == (2, "")
    assert result.err == "understudy: there is nobody to ask whether to discard them; give --yes\n"
    assert await letters.count() == 1


@pytest.mark.parametrize("answer", ["y", "n"])
async def test_discard_asks_and_removes_what_it_asked_about(letters: Letters, answer: str) -> None:
    """What comes while somebody thinks about it stays."""
    await letters.add(1)
    await letters.add(2, actor="shipping")
    ours, theirs = pty.openpty()
    process = await letters.start("discard", "--all", stdin=theirs)
    assert process.stderr is not None
    question = await asyncio.wait_for(process.stderr.readuntil(b"] "), 60)
    assert question == b"Discard 2 dead letters for good (1 of billing, 1 of shipping)? [y/N] "
    await letters.add(3)
    os.write(ours, f"{answer}\n".encode())
    result = await ended(process)
    os.close(ours)
    os.close(theirs)
    assert result.status == 0
    assert (result.out, result.err) == (
        ("2 discarded\n", "") if answer == "y" else ("", "nothing discarded\n")
    )
    assert await letters.count() == (1 if answer == "y" else 3)


async def test_the_only_app_is_taken_and_several_are_named(letters: Letters) -> None:
    """By --app; a stream that only looks like one isn't counted."""
    await letters.js.add_stream(name="OTHER_DEAD_LETTERS", subjects=["others.>"])
    await letters.add(1)
    assert len((await letters.run("list", "--json")).objects()) == 1
    await letters.js.add_stream(name="MY-APP_DEAD_LETTERS", subjects=["dead-letters.my-app.>"])
    result = await letters.run("list")
    assert (result.status, result.out) == (2, "")
    assert result.err == "understudy: several apps keep dead letters: my-app, shop; say which with --app\n"
    assert len((await letters.run("list", "--json", "--app", "shop")).objects()) == 1
    result = await letters.run("list", "--app", "my-app")
    assert (result.status, result.out, result.err) == (0, "", "no dead letters\n")
    result = await letters.run("list", "--app", "none")
    assert (result.status, result.out) == (1, "")
    assert (
        result.err
        == "understudy: there is no stream NONE_DEAD_LETTERS: the apps that have one are my-app, shop\n"
    )


async def test_a_server_without_dead_letters_says_so(nats_server: NatsServer, tmp_path: Path) -> None:
    """With --app and without; only what is asked for by name is 1."""
    async with bench(nats_server.url, tmp_path) as made:
        found = Letters(made.client, nats_server.url)
        result = await found.run("list")
        assert result.status == 2
        assert result.err == (
            "understudy: there is no stream of dead letters on this server: "
            "an app makes its own when it first runs\n"
        )
        result = await found.run("list", "--app", "shop")
        assert result.status == 1
        assert result.err == "understudy: there is no stream SHOP_DEAD_LETTERS: no app has one here\n"


async def test_a_broker_that_is_away_is_status_3(letters: Letters, nats_server: NatsServer) -> None:
    """For each of them."""
    nats_server.stop()
    for command in ("list", "show 1", "replay --all", "discard --all --yes", "export"):
        result = await letters.run(*command.split())
        assert (result.status, result.out) == (3, "")
        assert result.err.startswith(f"understudy: no broker answers at {nats_server.url}: ")


LOOKING = [
    "$JS.API.STREAM.INFO.SHOP_DEAD_LETTERS",
    "$JS.API.CONSUMER.CREATE.SHOP_DEAD_LETTERS.*",
    "$JS.API.CONSUMER.MSG.NEXT.SHOP_DEAD_LETTERS.*",
    "$JS.API.CONSUMER.DELETE.SHOP_DEAD_LETTERS.*",
    "$JS.API.STREAM.INFO.ORDERS",
    "$JS.API.STREAM.MSG.GET.ORDERS",
]
DISCARDING = ["$JS.API.STREAM.MSG.DELETE.SHOP_DEAD_LETTERS"]
REPLAYING = ["$JS.API.CONSUMER.INFO.ORDERS.*", "orders.placed"]


async def restrict(server: NatsServer, **users: list[str]) -> None:
    """Have the server let in these users alone, by their name as password; they may publish to so much."""
    permissions = "".join(
        f"{{ user: {name}, password: {name}, permissions: {{"
        f" publish: {json.dumps(subjects)}, subscribe: [_INBOX.>] }} }}\n"
        for name, subjects in users.items()
    )
    with (server.directory / "nats-server.conf").open("a") as file:
        file.write(f"authorization {{ users: [\n{permissions}] }}\n")
    os.kill(server.pid, signal.SIGHUP)

    async def knows_them() -> bool:
        stranger = ConnectionSpec(servers=(server.url,), user="stranger", password="x", fast_lane=False)
        try:
            await close(await connect(stranger, name="test"))
        except BrokerRefused:
            return True
        return False

    await until(knows_them)


async def test_each_command_needs_no_more_permissions_than_are_documented(
    letters: Letters, nats_server: NatsServer
) -> None:
    """And whoever has fewer is told that the server doesn't answer."""
    letters.fast_lane = False
    large = b"x" * (letters.client.max_payload - 600)
    ack = await letters.js.publish("orders.placed", large)
    await letters.add(ack.seq, body=large, error="e" * 1000)
    await letters.add(7)
    await letters.add(8)
    await restrict(
        nats_server,
        looking=LOOKING,
        discarding=[*LOOKING, *DISCARDING],
        replaying=[*LOOKING, *DISCARDING, *REPLAYING],
    )

    async def run(user: str, *arguments: str) -> Result:
        letters.url = nats_server.url.replace("nats://", f"nats://{user}:{user}@")
        return await letters.run(*arguments, "--app", "shop")

    assert (await run("looking", "list")).status == 0
    assert len((await run("looking", "show", "1")).out) > len(large)
    assert (await run("looking", "export")).err == "3 dead letters exported\n"
    refused = await run("looking", "discard", "3", "--yes")
    assert (refused.status, refused.out) == (1, "0 discarded\n")
    assert (await run("discarding", "discard", "3", "--yes")).out == "1 discarded\n"
    assert (await run("replaying", "replay", "--all")).out == "2 replayed\n"


async def test_a_reader_that_has_enough_ends_an_export_quietly(letters: Letters) -> None:
    """With the status of a tool that SIGPIPE has ended, as `head` in a shell expects it."""
    await asyncio.gather(*(letters.add(number, body=b"x" * 1000) for number in range(1, 501)))
    process = await letters.start("export")
    assert process.stdout is not None
    assert process.stderr is not None
    await process.stdout.readline()
    # asyncio has no other way to close a pipe that it reads.
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    assert await process.stderr.read() == b""
    assert await process.wait() == 141


async def test_a_replay_names_the_headers_that_it_lacks(letters: Letters) -> None:
    """Those that were left out of the letter; it is replayed all the same."""
    await letters.add(1, headers={"long": "x" * 70_000, "short": "y"})
    await letters.add(2)
    said = "dead letter 1: a replay lacks the headers that were left out of it: long\n"
    tried = await letters.run("replay", "--all", "--dry-run")
    assert (tried.status, tried.out, tried.err) == (
        0,
        "would replay 2 to stream ORDERS for shop-billing\n",
        said,
    )
    replayed = await letters.run("replay", "--all")
    assert (replayed.status, replayed.out, replayed.err) == (0, "2 replayed\n", said)
