"""A collector that throws away what it is sent: `python -m benchmarks.collector` prints its address.

It does as little as it can, since it takes its time from the same cores.
"""

from __future__ import annotations

import asyncio

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
_LENGTH = b"content-length:"


async def _swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            start = head.lower().index(_LENGTH) + len(_LENGTH)
            await reader.readexactly(int(head[start : head.index(b"\r\n", start)]))
            writer.write(ANSWER)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        # Whoever sends has gone.
        return
    finally:
        writer.close()


async def _main() -> None:
    server = await asyncio.start_server(_swallow, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
