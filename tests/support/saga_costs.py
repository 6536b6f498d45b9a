"""What sagas cost beside what their store does: CPU time of the processes, and of a commit alone."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import msgspec

from understudy.config.connection import ConnectionSpec
from understudy.runtime.jetstream import api, connection
from understudy.runtime.jetstream.publish_window import PublishWindow
from understudy.runtime.stores.state import StateStore, revision_of

# So many as a saga's actor has under way at once.
_UNDER_WAY = 64
_COMMITS = 2_000
_DURABLE = "measured"


class StoreCost(msgspec.Struct, kw_only=True):
    """What one commit takes, of a state as large as a saga's.

    Args:
        round_trip_us: alone, until it is confirmed.
        client_cpu_us: with others under way.
        broker_cpu_us: the same.
    """

    round_trip_us: float
    client_cpu_us: float
    broker_cpu_us: float


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process that lives."""
    # clock_getcpuclockid(3): the id of a process's clock is made from its pid; /proc has only ticks of 10 ms.
    return time.clock_gettime((~pid << 3) | 2)


def commits(url: str, bucket: str) -> tuple[int, int]:
    """Return how many writes a bucket has seen, and of how many bytes what it holds is, each."""

    async def ask() -> tuple[int, int]:
        client = await connection.connect(ConnectionSpec(servers=(url,)), name="tests")
        try:
            info = await api.stream_info(client, f"KV_{bucket}")
            assert info is not None
            state = info["state"]
            return int(state["last_seq"]), int(state["bytes"]) // max(1, int(state["messages"]))
        finally:
            await client.close()

    return asyncio.run(ask())


def cost_of_a_commit(url: str, bucket: str, broker: int, size: int) -> StoreCost:
    """Measure what committing alone takes, as a cell does it, in the bucket that sagas have filled.

    Args:
        url: of the server.
        bucket: of the states.
        broker: its process.
        size: bytes of a state.
    """

    async def measure() -> StoreCost:
        client = await connection.connect(ConnectionSpec(servers=(url,)), name="tests")
        window = PublishWindow(client)
        await window.open()
        store = await StateStore.open(client, window, bucket, _DURABLE)
        revisions: Counter[str] = Counter()

        async def commit(name: str, times: int) -> None:
            for _ in range(times):
                answer = store.commit(name, revisions[name], bytes(size))
                await answer
                revisions[name] = revision_of(answer)

        try:
            began = time.perf_counter()
            await commit("alone", _COMMITS // 10)
            alone = (time.perf_counter() - began) / (_COMMITS // 10)
            before = time.process_time(), cpu_seconds(broker)
            each = _COMMITS // _UNDER_WAY
            await asyncio.gather(*(commit(str(number), each) for number in range(_UNDER_WAY)))
            spent = time.process_time() - before[0], cpu_seconds(broker) - before[1]
        finally:
            window.close()
            await client.close()
        done = each * _UNDER_WAY
        return StoreCost(
            round_trip_us=round(alone * 1e6, 1),
            client_cpu_us=round(spent[0] / done * 1e6, 1),
            broker_cpu_us=round(spent[1] / done * 1e6, 1),
        )

    return asyncio.run(measure())
