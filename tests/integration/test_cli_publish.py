"""`understudy publish` against a real server."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import nats
import pytest
from nats.js import JetStreamContext

from support.nats import NatsServer, configured_server


@pytest.fixture
async def jetstream(nats_server: NatsServer) -> JetStreamContext:
    connection = await nats.connect(nats_server.url)
    context = connection.jetstream()
    await context.add_stream(name="ORDERS", subjects=["orders.>"])
    return context


def understudy(
    server: NatsServer, *arguments: str, stdin: str = "", directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "understudy.runtime", "publish", *arguments, "--servers", server.url],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
    )


async def test_one_body_is_stored_as_it_is_and_said_to_be_json(
    nats_server: NatsServer, jetstream: JetStreamContext
) -> None:
    """Confirmed before the command says so."""
    result = understudy(nats_server, "orders.placed", "--json", '{"id": 1}')
    assert (result.returncode, result.stdout, result.stderr) == (0, "1 published\n", "")
    message = await jetstream.get_last_msg("ORDERS", "orders.placed")
    assert message.data == b'{"id": 1}'
    assert message.headers is not None
    assert message.headers["Content-Type"] == "application/json"


async def test_the_lines_of_a_file_go_out_and_those_that_fail_are_named(
    nats_server: NatsServer, jetstream: JetStreamContext
) -> None:
    """A bad line costs only itself; blank ones are no lines."""
    lines = [f'{{"id": {number}}}' for number in range(3000)]
    lines[1] = "{oops}"
    lines[2] = ""
    result = understudy(nats_server, "orders.placed", "--file", "-", stdin="\n".join(lines))
    assert (result.returncode, result.stdout) == (2, "2998 published, 1 malformed\n")
    assert result.stderr.startswith("line 2: is not JSON: ")
    assert len(result.stderr.splitlines()) == 1
    assert (await jetstream.stream_info("ORDERS")).state.messages == 2998


async def test_a_subject_that_no_stream_takes_is_status_3(
    nats_server: NatsServer, jetstream: JetStreamContext, tmp_path: Path
) -> None:
    """Each line is named, and the count says so."""
    (tmp_path / "two.ndjson").write_text("1\n2\n")
    result = understudy(nats_server, "nobody.listens", "--file", "two.ndjson", directory=tmp_path)
    assert (result.returncode, result.stdout) == (3, "0 published, 2 refused\n")
    assert sorted(line.split(":")[0] for line in result.stderr.splitlines()) == ["line 1", "line 2"]
    assert "no stream takes this subject" in result.stderr


async def test_the_server_of_an_embedded_run_in_the_directory_is_found(
    nats_server: NatsServer, jetstream: JetStreamContext, tmp_path: Path
) -> None:
    """Where nobody names servers: so the second terminal needs no options."""
    (tmp_path / ".understudy").symlink_to(nats_server.directory)
    result = subprocess.run(
        [sys.executable, "-m", "understudy.runtime", "publish", "orders.placed", "--json", "1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"XDG_CONFIG_HOME": str(tmp_path)},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "1 published\n", "")


async def test_a_line_from_a_pipe_goes_out_before_the_next_comes(
    nats_server: NatsServer, jetstream: JetStreamContext
) -> None:
    """As in `tail -f events | understudy publish … --file -`; Ctrl-C ends it."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "understudy.runtime", "publish", "orders.placed", "--file", "-"),
            *("--servers", nats_server.url),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    for number, written in enumerate((b'{"id": 1}\n{"id":', b" 2}\n"), start=1):
        process.stdin.write(written)
        process.stdin.flush()
        async with asyncio.timeout(60):
            while (await jetstream.stream_info("ORDERS")).state.messages < number:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"")


async def test_a_last_line_may_lack_its_end(nats_server: NatsServer, jetstream: JetStreamContext) -> None:
    """In a file as in a pipe."""
    result = understudy(nats_server, "orders.placed", "--file", "-", stdin='{"id": 1}\r\n\n{"id": 2}')
    assert (result.returncode, result.stdout) == (0, "2 published\n")
    message = await jetstream.get_msg("ORDERS", 1)
    assert message.data == b'{"id": 1}'


async def test_a_broker_without_jetstream_is_status_3() -> None:
    """With what enables it there."""
    async with configured_server() as url:
        result = await asyncio.to_thread(
            subprocess.run,
            [
                *(sys.executable, "-m", "understudy.runtime", "publish", "orders.placed"),
                *("--json", "1", "--servers", url),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (result.returncode, result.stdout) == (3, "0 published, 1 refused\n")
    assert result.stderr == (
        "orders.placed: no stream takes this subject, and the broker has no JetStream enabled; "
        "start it as nats-server -js or with jetstream {} in its file, or use an account that has it\n"
    )
