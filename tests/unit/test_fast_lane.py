"""The fast lane's parser: it and nats-py's own hand over the same, wherever the reads are cut."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from understudy.runtime.jetstream.fast_lane import FastParser

Frame = tuple[int, bytes, bytes, bytes, bytes]


class Listener:
    """What a parser calls; the client's part."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> None:
        self.said.append((sid, subject, reply, headers or b"", data))

    async def _process_ping(self) -> None:
        self.said.append("PING")

    async def _process_pong(self) -> None:
        self.said.append("PONG")

    async def _process_err(self, error: str) -> None:
        self.said.append(error)

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.said.append(info)


class FastListener(Listener):
    """The same with a fast parser, of which subscriptions 1 and 2 have receivers."""

    def __init__(self) -> None:
        super().__init__()
        self.parser = FastParser(self)  # type: ignore[arg-type]
        self.direct = 0
        for sid in (1, 2):
            self.parser.receivers[b"%d" % sid] = self._receiver(sid)

    def _receiver(self, sid: int) -> Any:
        def receive(subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
            self.direct += 1
            self.said.append((sid, subject, reply, headers, body))

        return receive


def on_wire(frame: Frame) -> bytes:
    """Return a message as the server sends it."""
    sid, subject, reply, headers, body = frame
    middle = b" %b " % reply if reply else b" "
    if headers:
        return b"HMSG %b %d%b%d %d\r\n%b%b\r\n" % (
            *(subject, sid, middle, len(headers), len(headers) + len(body)),
            *(headers, body),
        )
    return b"MSG %b %d%b%d\r\n%b\r\n" % (subject, sid, middle, len(body), body)


words = st.binary(min_size=1, max_size=20).map(lambda some: some.hex().encode())
# Bodies that look like protocol must not be taken for it.
bodies = st.binary(max_size=300) | st.sampled_from(
    [b"MSG a 1 5\r\nhello\r\n", b"\r\n", b"PING\r\n", b"x" * 70_000]
)
blocks = st.just(b"") | words.map(lambda word: b"NATS/1.0\r\nA: " + word + b"\r\n\r\n")
frames = st.tuples(st.sampled_from([1, 2, 3]), words, st.just(b"") | words, blocks, bodies).map(on_wire)
others = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'no'\r\n", b'INFO {"a":1}\r\n'])


@given(stream=st.lists(frames | others, max_size=12).map(b"".join), cuts=st.lists(st.integers(0, 2**20)))
def test_it_says_what_nats_py_says_wherever_the_reads_are_cut(stream: bytes, cuts: list[int]) -> None:
    """Frames with and without receiver, headers, reply; of any size; and the protocol's other lines."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    reads = [stream[begin:end] for begin, end in itertools.pairwise(places)]
    plain, fast = Listener(), FastListener()
    parser = Parser(plain)

    async def feed() -> None:
        for read in reads:
            await parser.parse(read)
            await fast.parser.parse(read)

    asyncio.run(feed())
    assert fast.said == plain.said


async def test_whole_frames_do_not_go_through_nats_py() -> None:
    """The point of it."""
    fast = FastListener()

    async def refuse(*_: Any) -> None:
        raise AssertionError("through nats-py")

    fast._process_msg = refuse  # type: ignore[assignment,method-assign]
    await fast.parser.parse(b"".join(on_wire((1, b"a", b"b", b"", b"%d" % number)) for number in range(100)))
    assert fast.direct == 100


async def test_after_a_reset_the_rest_of_the_old_connection_counts_no_more() -> None:
    """An error that ends the connection resets the parser in the middle of what was read."""
    fast = FastListener()

    async def end(_error: str) -> None:
        fast.parser.reset()

    fast._process_err = end  # type: ignore[assignment,method-assign]
    message = on_wire((1, b"a", b"", b"", b"late"))
    await fast.parser.parse(b"-ERR 'stale'\r\n" + message + message[:7])
    assert fast.said == []
    await fast.parser.parse(message)
    assert fast.said == [(1, b"a", b"", b"", b"late")]


@pytest.mark.parametrize("line", [b"MSG a 1 x\r\n", b"MSG \r\n", b"HMSG a 1 b\r\n"])
async def test_a_malformed_frame_is_a_protocol_error(line: bytes) -> None:
    """After which nats-py connects anew; any other error would leave it deaf."""
    with pytest.raises(nats.errors.ProtocolError):
        await FastListener().parser.parse(line)
