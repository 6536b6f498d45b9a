"""A cell's traces from start to end, if the environment asks for any."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING
from urllib.parse import ParseResult

from understudy.runtime.cell.cellfile import Identity
from understudy.runtime.cell.pipeline import Pipeline
from understudy.runtime.cell.start import CellStart
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.telemetry import conventions as names
from understudy.runtime.telemetry.sampling import Sampler
from understudy.runtime.telemetry.tracing import Export, asked_for

if TYPE_CHECKING:
    from understudy.runtime.telemetry.otel import OpenTelemetry

# How long a drained cell waits for the last spans to be sent, and one that has failed, which is missed.
DRAINED_SECONDS = 2.0
FAILED_SECONDS = 0.25
DEFAULT_PORT = 4222


class Tracing:
    """OpenTelemetry in a cell.

    Args:
        start: which cell this is.
        export: where spans go.
        otel: makes them.
    """

    def __init__(self, start: CellStart, export: Export, otel: OpenTelemetry) -> None:
        self._start = start
        self._export = export
        self._otel = otel

    @classmethod
    def begin(cls, start: CellStart) -> Tracing | None:
        """Begin to send spans, if the environment asks for it.

        Raises:
            ConfigurationError: it asks for something that we don't know.
        """
        export = asked_for(os.environ)
        if export is None:
            return None
        # Not loaded where there are no traces: it takes a tenth of a second and some megabytes.
        from understudy.runtime.telemetry.otel import OpenTelemetry

        run, spec = start.run, start.spec
        otel = OpenTelemetry(
            export,
            service=run.app,
            instance=f"{run.run_id}/{spec.name}/{start.generation}",
            attributes={
                names.ACTOR: spec.actor,
                names.STREAM: spec.stream,
                names.CELL: spec.name,
                names.GENERATION: start.generation,
            },
        )
        return cls(start, export, otel)

    def attach(self, pipeline: Pipeline, identity: Identity, client: Connection) -> None:
        """Trace what a pipeline handles; called in the task that makes the lanes, before it does.

        Args:
            pipeline: whose `handle` is replaced.
            identity: whose deliveries these are.
            client: the connection.
        """
        from understudy.runtime.cell.traced import Tracer
        from understudy.runtime.telemetry.otel import follow_deliveries

        follow_deliveries()
        sampler = Sampler(identity.stream, self._export.ratio, is_parent_based=self._export.is_parent_based)
        Tracer(self._otel, identity, sampler, self._start.run.trace_relation, _Server(client)).attach(
            pipeline
        )

    async def end(self, *, failed: bool) -> None:
        """Send what is left, for a moment.

        Args:
            failed: whether a replacement waits for the end of this process.
        """
        seconds = FAILED_SECONDS if failed else DRAINED_SECONDS
        await asyncio.to_thread(self._otel.shut_down, seconds)


class _Server:
    """Host and port of the server that a client is connected to, read anew only after it has changed."""

    def __init__(self, client: Connection) -> None:
        self._client = client
        self._url: ParseResult | None = None
        self._known: tuple[str, int] | None = None

    def __call__(self) -> tuple[str, int] | None:
        url = self._client.connected_url
        if url is not self._url:
            self._url = url
            host = None if url is None else url.hostname
            self._known = None if url is None or host is None else (host, url.port or DEFAULT_PORT)
        return self._known
