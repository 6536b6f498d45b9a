"""The data side of a cell: one actor instance, its subscription, its lanes, from start to drain."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from understudy.actors.context import StartContext
from understudy.actors.errors import BrokerError, DeclarationError
from understudy.actors.state import StateCodec
from understudy.runtime.app import App
from understudy.runtime.breakers.breakers import Breakers
from understudy.runtime.cell.cellfile import CellFile, Identity, boot_id
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.epochs import end_epochs
from understudy.runtime.cell.failures import ActorFailed, error_text
from understudy.runtime.cell.fetch_ahead import FetchAhead
from understudy.runtime.cell.lanes import Lanes, Mode
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.ownership import SoleOwner
from understudy.runtime.cell.paused import read_paused
from understudy.runtime.cell.pipeline import Pipeline
from understudy.runtime.cell.start import CellStart
from understudy.runtime.cell.state import States
from understudy.runtime.cell.status import (
    HEARTBEAT_SECONDS,
    IDLE_HEARTBEAT_SECONDS,
    BreakerStatus,
    CellState,
    Pause,
    boottime,
)
from understudy.runtime.cell.takeover import TakenOver, Takeover
from understudy.runtime.cell.watchdog import CHECK_SECONDS, Stalled, Watchdog
from understudy.runtime.jetstream import api, connection
from understudy.runtime.jetstream.changes import NANOSECONDS
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.last_messages import LastMessages
from understudy.runtime.jetstream.pinning import Pin, misfit, pinned_id, unpin
from understudy.runtime.jetstream.publish_window import PublishWindow
from understudy.runtime.jetstream.settlement import (
    BURST,
    Settlement,
    ack_prefix,
    parse_ack_subject,
)
from understudy.runtime.jetstream.subscription import PullSubscription
from understudy.runtime.jetstream.topology import (
    attempts_bucket,
    breakers_bucket,
    breakers_news,
    marks_bucket,
    state_bucket,
)
from understudy.runtime.stores.attempts import AttemptStore
from understudy.runtime.stores.breaker_store import BreakerStore
from understudy.runtime.stores.idempotency import KvMarks
from understudy.runtime.stores.state import StateStore

# How long a drain goes on handling what is held before it gives the rest back.
DRAIN_SECONDS = 1.0
# Acks are written when so much of the mailbox waits for it, if they aren't enough before.
ACKED_SHARE = 8
_log = structlog.get_logger("understudy.cell")


class Cell:
    """Runs one actor until it is told to stop.

    Args:
        start: which cell this is, and what became of the one before.
        app: the user's app, imported in this process.

    Raises:
        OSError: the cell file can't be made.
    """

    def __init__(self, start: CellStart, app: App) -> None:
        self._start = start
        self._stream = start.spec.stream
        self._ack_prefix = ack_prefix(self._stream, start.spec.durable)
        self._ack_prefix_length = len(self._ack_prefix)
        self._child = app.child(start.spec.actor)
        self._options = self._child.spec.options
        identity = Identity(
            app=start.run.app,
            actor=start.spec.actor,
            cell=start.spec.name,
            durable=start.spec.durable,
            stream=start.spec.stream,
            boot_id=boot_id(),
            run_id=start.run.run_id,
            generation=start.generation,
        )
        self._file = CellFile.create(start.cell_file_path(), identity, self._options.mailbox.capacity)
        self._status = self._file.status
        self._ledger = self._file.ledger
        self._mailbox = Mailbox(self._options.mailbox, self._ledger)
        self._ack_wait_seconds = start.spec.ack_wait_seconds
        self._received = self._total_received = 0
        self._now = boottime()
        self._breakers = Breakers(
            self._child.breakers,
            changed=self._on_breaker,
            count=self._status.count,
            # What its predecessor has claimed isn't its own.
            me=f"{start.spec.name}@{start.run.run_id}.{secrets.token_hex(4)}",
            call_bound_seconds=self._options.handler_timeout_seconds,
        )
        if self._child.breakers:
            self._show_breakers()
        self._stop = asyncio.Event()
        # Whether its actor has asked for that.
        self.stopped_itself = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: asyncio.Future[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        # Set to have the next heartbeat now, and at each for a moment.
        self._awake = asyncio.Event()
        self._beaten = asyncio.Event()
        # Whether nothing had happened before the last heartbeat, so that the next one is far.
        self._idle = False
        self._received_before = 0
        self._draining = False
        # Why it isn't up, each empty if that is no reason.
        self._halted = ""
        self._open_breaker = ""
        self._marks_away = ""
        self._resting = False
        self._blocked = self._gated = 0
        self._is_clogged = False
        self._paused = False
        batch_sizes = [
            handler.batch.size for handler in self._child.spec.handlers if handler.batch is not None
        ]
        self._fetch_ahead = FetchAhead(
            self._options.mailbox.capacity,
            self._options.concurrency * max(batch_sizes, default=1),
            start.spec.ack_wait_seconds,
        )
        self._watchdog = Watchdog(
            durable=start.spec.durable,
            progress=lambda: self._mailbox.settled + self._total_received,
            excused=self._may_stand_still,
            waiting=self._waiting,
            rebuild=self._rebuild,
            restarted_for_this=start.reason.startswith(Stalled.__name__),
        )
        self._client: Connection | None = None
        self._states: States | None = None
        # Made when the connection stands and the actor has started, before any delivery.
        self._prepared = False
        self._ownership: SoleOwner | None = None
        self._pin: Pin | None = None
        self._settlement: Settlement
        self._subscription: PullSubscription
        self._pipeline: Pipeline
        self._lanes: Lanes

    async def run(self, ready: Callable[[], None]) -> str:
        """Start, say that we are ready, handle deliveries until told to stop, and drain.

        Runs in the data thread's event loop.

        Args:
            ready: called once, when the actor has started and is about to take deliveries.

        Returns:
            What the drain left to the next start, and why; empty if nothing.

        Raises:
            Exception: whatever made the cell fail; what it held is in its cell file.
        """
        self._loop = asyncio.get_running_loop()
        self._failure = self._loop.create_future()
        self._breakers.run_in(self._loop)
        self.look_at_pause()
        self._background = [
            asyncio.create_task(self._beat(), name="understudy-heartbeat"),
            asyncio.create_task(self._watch(), name="understudy-watchdog"),
        ]
        try:
            preparing = asyncio.create_task(self._prepare(), name="understudy-prepare")
            await self._until_stop([preparing])
            if preparing.done():
                ready()
                self._show_state()
                actor, taken_over = preparing.result()
                feeding = asyncio.create_task(self._feed(taken_over), name="understudy-feed")
                await self._until_stop([*self._background, feeding, *self._lanes.workers, self._lanes.broken])
                feeding.cancel()
                # Of a stop that its supervisor has asked for, that keeps the time.
                timeout_seconds = self._start.run.shutdown_timeout_seconds if self.stopped_itself else None
                async with asyncio.timeout(timeout_seconds):
                    problem = await self._drain(actor)
            else:
                # A hook that never ends must not hold up the stop; its cell has taken nothing yet.
                preparing.cancel()
                problem = ""
            self._status.state(CellState.STOPPED)
            return problem
        except BaseException as error:
            self._status.state(CellState.FAILED, failure_text(error))
            raise
        finally:
            for task in self._background:
                task.cancel()

    def quiesce(self) -> None:
        """Ask the stream for nothing more; what is held is handled on."""
        if self._prepared:
            self._subscription.quiesce()
            self._lanes.hurry()

    def look_at_pause(self) -> None:
        """Pause or go on as the operator has it; called by `run` too.

        While paused nothing new is begun and nothing asked for, and what is held stays held.
        """
        paused = self._start.spec.name in read_paused(Path(self._start.run.run_directory))
        if paused == self._paused:
            return
        self._paused = paused
        _log.info("paused by the operator" if paused else "resumed by the operator")
        if self._prepared:
            self._pause_lanes()
            self._show_state()
        self._show_pause()

    def stop(self) -> None:
        """Begin to drain; may be called more than once, and before the cell is ready."""
        self._stop.set()

    def beat_control(self) -> None:
        """Say that the main thread runs, which calls this."""
        self._status.beat_control()

    def _stop_itself(self) -> None:
        """Drain for good, as the actor asks; may be called from a handler's thread.

        Raises:
            DeclarationError: its supervisor would start it again.
        """
        if self._options.restart == "permanent":
            raise DeclarationError(
                f"actor {self._start.spec.actor!r} is permanent, and would be started again; to let it stop "
                f"itself declare it with restart='transient' (or 'temporary')"
            )
        self.stopped_itself = True
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _actor_failed(self, error: ActorFailed) -> None:
        """End with this failure, as soon as what was settled before it is with the server."""
        assert self._client is not None
        # What has failed begins nothing more.
        self._lanes.halt()
        with contextlib.suppress(BrokerError):
            await self._settlement.flush()
            await connection.confirm(self._client)
        self._fail(error)

    async def _prepare(self) -> tuple[Any, TakenOver]:
        """Connect, take over, and start the actor."""
        spec, run = self._start.spec, self._start.run
        self._client = client = await connection.connect(
            run.connection, name=f"{run.app}/{spec.name}", on_state=self._on_connection
        )
        self._on_connection("connected")
        stream = await api.stream_info(client, spec.stream)
        consumer = await api.consumer_info(client, spec.stream, spec.durable) if stream is not None else None
        if stream is None or consumer is None:
            missing = f"stream {spec.stream}" if stream is None else f"consumer {spec.durable}"
            raise BrokerError(
                f"{missing} is gone from the server; start 'understudy run' anew, which makes it"
            )
        if problem := misfit(spec.durable, consumer["config"], owned=self._options.is_sole_owner):
            raise BrokerError(problem)
        # A newer revision of the app, on another node, may have given it less time than we declare.
        self._ack_wait_seconds = min(self._ack_wait_seconds, consumer["config"]["ack_wait"] / NANOSECONDS)
        self._background.append(asyncio.create_task(self._extend(), name="understudy-extend"))
        self._file.bind(
            msgspec.structs.replace(
                self._file.identity, stream_created=stream["created"], consumer_created=consumer["created"]
            )
        )
        window = PublishWindow(client)
        await window.open()
        if self._child.breakers:
            store = await BreakerStore.open(
                client, breakers_bucket(run.app), breakers_news(run.app), self._breakers.hear
            )
            await self._breakers.share(store, self._child.breaker_keys)
        self._settlement = Settlement(
            client, self._burst_ended, burst=max(1, min(BURST, self._mailbox.bound // ACKED_SHARE))
        )
        attempts = await AttemptStore.open(client, attempts_bucket(run.app), spec.durable, stream["created"])
        mark_store = await self._open_marks(client, window)
        takeover = Takeover(
            client=client,
            settlement=self._settlement,
            attempts=attempts,
            identity=self._file.identity,
            allow_direct=bool(stream["config"].get("allow_direct")),
            consumer_sequence=consumer["delivered"]["consumer_seq"],
            pinned=pinned_id(consumer) if self._options.is_sole_owner else None,
            mailbox=self._mailbox,
            ledger=self._ledger,
            status=self._status,
            ack_wait_seconds=self._ack_wait_seconds,
        )
        taken_over = await takeover.run(
            self._start.predecessor_paths(), crashed=self._start.crashed, reason=self._start.reason
        )
        if self._options.is_sole_owner:
            self._pin = self._make_pin(client, taken_over)
            # From now on: a start may take longer than the pin lives.
            keeping = self._pin.keep(client, spec.stream, spec.durable)
            self._background.append(asyncio.create_task(keeping, name="understudy-keep-pin"))
        states = await self._open_states(
            client, window, stream["created"], consumer["ack_floor"]["stream_seq"]
        )
        actor = await self._start_actor()
        self._subscription = PullSubscription(
            client,
            spec.stream,
            spec.durable,
            consumer["created"],
            self._mailbox,
            self._settlement,
            self._deliver,
            self._fail,
            self._pin,
            self._options.concurrency,
            self._awake.set,
        )
        self._pipeline = Pipeline(
            actor=actor,
            spec=self._child.spec,
            identity=self._file.identity,
            broker=client,
            window=window,
            settlement=self._settlement,
            attempts=attempts,
            mark_store=mark_store,
            mailbox=self._mailbox,
            ledger=self._ledger,
            status=self._status,
            breakers=self._breakers,
            states=states,
            settled=self._burst_ended,
            marks_away=self._on_marks_away,
            undecodable=self._halt,
            actor_failed=self._actor_failed,
            stop=self._stop_itself,
        )
        self._lanes = Lanes(
            concurrency=self._options.concurrency,
            hang_timeout_seconds=self._options.hang_timeout_seconds,
            handle=self._pipeline.handle,
            wait_seconds=self._breakers.wait_seconds,
            mode_changed=self._on_mode,
            blocked_changed=self._on_blocked,
            gated_changed=self._on_gated,
            idle=self._on_idle,
            batches=self._pipeline.batches,
            declared=frozenset(name for handler in self._child.spec.handlers for name in handler.breakers),
            handle_line=None if self._pipeline.stateful is None else self._pipeline.stateful.handle,
        )
        self._lanes.start()
        self._pause_lanes()
        self._prepared = True
        for name in self._child.breakers:
            self._lanes.breaker_changed(name)
        return actor, taken_over

    async def _open_states(
        self, client: Connection, window: PublishWindow, stream_created: str, floor: int
    ) -> States | None:
        if self._options.state is None:
            return None
        store = await StateStore.open(
            client, window, state_bucket(self._start.run.app), self._start.spec.durable
        )
        self._states = States(
            store,
            StateCodec(self._options.state, self._start.spec.actor),
            stream_created=stream_created,
            floor=floor,
            holds_any=self._mailbox.holds_any,
        )
        ending = end_epochs(
            self._states.epochs, client, self._settlement, self._start.spec.stream, self._start.spec.durable
        )
        self._background.append(asyncio.create_task(ending, name="understudy-epochs"))
        return self._states

    async def _open_marks(self, client: Connection, window: PublishWindow) -> KvMarks | None:
        idempotency = self._options.idempotency
        if idempotency is None or idempotency.store != "kv":
            return None
        bucket = marks_bucket(self._start.run.app)
        lookups = LastMessages(client, f"KV_{bucket}")
        await lookups.open()
        return await KvMarks.open(
            client,
            lookups,
            window,
            bucket=bucket,
            durable=self._start.spec.durable,
            window_seconds=idempotency.window_seconds,
        )

    async def _start_actor(self) -> Any:
        actor = self._child.make()
        if self._start.reason:
            await _call(lambda: actor.on_restart(self._start.reason), actor.on_restart)
        context = StartContext(
            app=self._start.run.app,
            actor=self._start.spec.actor,
            cell=self._start.spec.name,
            generation=self._start.generation,
            log=structlog.get_logger("understudy.actor"),
        )
        await _call(lambda: actor.on_start(context), actor.on_start)
        return actor

    async def _feed(self, taken_over: TakenOver) -> None:
        """Handle what was taken over, suspects first and alone, then what the stream has."""
        if taken_over.pin_id:
            with contextlib.suppress(BrokerError):
                # The start may have taken longer than the pin lives, in a hook that holds up the event loop.
                await self._subscription.look_for_owner()
        for delivery in taken_over.suspects:
            self._begin(delivery)
            await self._lanes.quiet_and_unpaused()
        for delivery in taken_over.held:
            self._begin(delivery)
        self._set_limit()
        await self._subscription.start()

    def _begin(self, delivery: HeldDelivery) -> None:
        """Have a delivery that was taken over handled, unless it was dropped since."""
        if self._mailbox.get(delivery.sequence) is delivery:
            self._pipeline.prepare(delivery)
            self._lanes.add(delivery)

    async def _until_stop(self, tasks: Sequence[asyncio.Future[Any]]) -> None:
        """Return when told to stop or when a task has ended; raise what a task or the cell failed with."""
        assert self._failure is not None
        stop = asyncio.create_task(self._stop.wait(), name="understudy-stop")
        try:
            watched: set[asyncio.Future[Any]] = {stop, self._failure, *tasks}
            finished, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                task.result()
        finally:
            stop.cancel()

    async def _drain(self, actor: Any) -> str:
        assert self._client is not None
        self._draining = True
        self._show_state()
        self._lanes.hurry()
        await self._subscription.stop()
        # What is quickly handled is better handled than given back.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._lanes.quiet()
        await self._lanes.stop()
        await self._breakers.close()
        self._pipeline.close()
        # Whoever was given what is handled would handle it again; the next start takes it over, and marks it.
        held = [delivery for delivery in self._mailbox if not delivery.is_handled]
        held.sort(key=lambda delivery: delivery.sequence)
        if await self._settlement.nak_in_order([delivery.reply for delivery in held]):
            for delivery in held:
                self._mailbox.release(delivery)
        if self._pin is not None and self._client.is_connected:
            await self._hand_over(self._pin)
        try:
            await _call(actor.on_stop, actor.on_stop)
        except (Exception, SystemExit):  # noqa: BLE001, user code may raise anything, and the stop goes on
            _log.exception("on_stop failed")
        confirmed = await connection.close(self._client)
        # Acks that the server may not have are in the ledger, and are repeated by the next start.
        if not (confirmed and self._mailbox.is_empty()):
            return "the broker did not confirm the last settlements; the next start takes over"
        self._file.remove()
        _log.info("drained", given_back=len(held))
        return ""

    def _forget(self) -> set[HeldDelivery]:
        if self._states is not None:
            self._states.forget()
        # The lanes are made after this, and before anything could be forgotten.
        return self._lanes.clear()

    async def _hand_over(self, pin: Pin) -> None:
        """Unpin ourselves, so that a standby has what was given back.

        What is given back after that may come to it twice.
        """
        assert self._client is not None
        try:
            await unpin(self._client, self._start.spec.stream, self._start.spec.durable, pin.id)
        except BrokerError as error:
            _log.warning("not unpinned; a standby takes over when the pin has timed out", error=str(error))
        # Kept no longer.
        pin.set("")

    def _deliver(self, subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
        # Faster by half than to split all of it, as a server in a domain, which names that first, needs it.
        if reply.startswith(self._ack_prefix):
            count, number, _ = reply[self._ack_prefix_length :].split(b".", 2)
            delivery_count, sequence = int(count), int(number)
        else:
            delivery_count, sequence, _ = parse_ack_subject(reply)
        self._received += 1
        if delivery_count > 1:
            self._status.count("redelivered")
        if self._idle:
            self._idle = False
            self._now = boottime()
            self._awake.set()
        held = self._mailbox.get(sequence)
        if held is not None:
            # The server gave up waiting for us, as after a long loss of the connection; we still have it.
            held.reply = reply
            held.delivery_count = delivery_count
            return
        if delivery_count > 1 and self._mailbox.has_settled(sequence):
            # The server had given up waiting for the dead cell when it was told that we have it.
            self._settlement.ack(reply)
            return
        now = self._now
        delivery = HeldDelivery(
            self._stream,
            subject.decode(errors="backslashreplace"),
            reply,
            block,
            body,
            sequence,
            delivery_count,
            self._ledger.hold(sequence, delivery_count, now),
            now,
            self._file.identity.stream_created,
        )
        self._mailbox.add(delivery)
        self._pipeline.prepare(delivery)
        self._lanes.add(delivery)

    def _burst_ended(self) -> None:
        """Hear that deliveries were settled."""
        self._report()
        if self._prepared:
            idle = self._mailbox.is_empty()
            self._fetch_ahead.observe(time.monotonic(), self._mailbox.settled, idle=idle)
            self._set_limit()
            self._subscription.settled()

    def _pause_lanes(self) -> None:
        if self._paused:
            self._lanes.pause()
        else:
            self._lanes.resume()

    def _show_pause(self) -> None:
        """Say how far the operator's pause has come."""
        if not self._paused:
            pause = Pause.NONE
        elif self._prepared and not (self._lanes.is_at_rest() and self._subscription.is_unasked()):
            pause = Pause.PAUSING
        else:
            pause = Pause.PAUSED
        self._status.gauge("pause", pause)

    def _on_idle(self) -> None:
        # Nothing more comes before the acks are written, so that they would wait for others in vain.
        if self._subscription.is_unasked():
            self._settlement.write()

    def _report(self) -> None:
        self._status.gauge("held", len(self._mailbox))
        if self._received:
            self._status.count("received", self._received)
            self._total_received += self._received
            self._received = 0
        if self._prepared:
            self._pipeline.report()

    def _make_pin(self, client: Connection, taken_over: TakenOver) -> Pin:
        self._ownership = SoleOwner(
            client=client,
            file=self._file,
            mailbox=self._mailbox,
            settlement=self._settlement,
            forget=self._forget,
            changed=self._show_state,
            candidate_died_at=taken_over.candidate_died_at,
        )
        if taken_over.pin_id:
            self._ownership.owned(taken_over.pin_id)
        return Pin(self._ownership, self._ack_wait_seconds, taken_over.pin_id)

    async def _beat(self) -> None:
        """Show that this thread runs: every heartbeat, and while idle mostly when it is awake anyway.

        To wake a thread costs several times what it then does here.
        """
        hang_timeout_seconds = self._options.hang_timeout_seconds
        seconds = min(HEARTBEAT_SECONDS, hang_timeout_seconds / 4)
        idle_seconds = min(IDLE_HEARTBEAT_SECONDS, hang_timeout_seconds / 3)
        while True:
            self._awake.clear()
            self._status.beat()
            # The time that new ledger entries carry: a heartbeat's age makes no difference to an ack_wait.
            self._now = boottime()
            self._report()
            self._show_pause()
            received, self._received_before = self._received_before, self._total_received
            self._idle = self._prepared and self._mailbox.is_empty() and received == self._total_received
            self._beaten.set()
            self._beaten.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(idle_seconds if self._idle else seconds):
                    await self._awake.wait()

    async def _heartbeats(self, seconds: float) -> None:
        """Return with the first heartbeat after so long, for which the thread is awake anyway.

        Args:
            seconds: at least.
        """
        since = boottime()
        while boottime() - since < seconds:
            await self._beaten.wait()

    async def _extend(self) -> None:
        """Begin the `ack_wait` of everything held anew, each third of it."""
        third = self._ack_wait_seconds / 3
        while True:
            await self._heartbeats(third / 4)
            if self._client is None or not self._client.is_connected:
                continue
            now = boottime()
            for delivery in self._mailbox:
                if (
                    now - delivery.extended_at >= third / 2
                    and self._mailbox.get(delivery.sequence) is delivery
                ):
                    await self._settlement.in_progress(delivery.reply)
                    delivery.extended_at = now
                    self._ledger.extend(delivery.slot, now)

    def _on_connection(self, state: str) -> None:
        self._status.gauge("connected", int(state == "connected"))
        if self._states is not None and state != "connected":
            self._states.epochs.disconnected()
        if state == "closed" and not self._draining:
            self._fail(BrokerError("the broker connection is closed for good"))
        elif self._prepared:
            if state == "connected":
                self._subscription.reconnected()
                self._breakers.look()
            else:
                self._subscription.disconnected()

    def _on_breaker(self, name: str) -> None:
        self._show_breakers()
        if self._prepared:
            self._lanes.breaker_changed(name)

    def _show_breakers(self) -> None:
        # By the clock that everything in the cell file goes by.
        behind = time.time() - boottime()
        self._status.breakers(
            [
                BreakerStatus(name=one.name, state=one.state, since=one.since and one.since - behind)
                for one in self._breakers.states()
            ]
        )

    def _on_mode(self, mode: Mode, breaker: str) -> None:
        self._resting = mode is Mode.NONE
        if mode is Mode.NONE:
            self._open_breaker = breaker
            _log.info("paused", breaker=breaker)
        elif mode is Mode.ALL:
            self._open_breaker = ""
            _log.info("resumed")
        self._show_state()

    def _on_marks_away(self, problem: str) -> None:
        self._marks_away = problem
        self._show_state()

    def _on_blocked(self, waiting: int) -> None:
        self._blocked = waiting
        self._look_at_waiting()

    def _on_gated(self, waiting: int) -> None:
        self._gated = waiting
        self._look_at_waiting()

    def _look_at_waiting(self) -> None:
        """Pause while what can't go on takes more than half the mailbox."""
        waiting = self._blocked + self._gated
        if self._options.ordered:
            # What keeps one order has nothing else to hold its mailbox free for.
            is_clogged = self._gated > 0
        else:
            is_clogged = waiting > self._options.mailbox.capacity // 2
        self._set_limit()
        if is_clogged is not self._is_clogged:
            _log.warning("blocked" if is_clogged else "no longer blocked", waiting=waiting)
            self._is_clogged = is_clogged
            self._show_state()

    def _set_limit(self) -> None:
        """Bound what is fetched ahead; what can't go on doesn't take its place."""
        waiting = 0 if self._options.ordered else self._blocked + self._gated
        self._mailbox.limit = min(self._mailbox.bound, self._fetch_ahead.limit + waiting)

    def _halt(self, error: str) -> None:
        self._halted = f"too many deliveries in a row can't be read, the last because: {error}"
        self._lanes.halt()
        _log.error("halted", reason=self._halted)
        self._show_state()

    def _show_state(self) -> None:
        """Say what the cell is doing, and ask for more or not; until it is prepared it is starting."""
        if not self._prepared:
            return
        if self._draining:
            self._status.state(CellState.DRAINING)
        elif self._halted:
            self._status.state(CellState.HALTED, self._halted)
        elif self._watchdog.stalled:
            self._status.state(CellState.STALLED, self._watchdog.stalled)
        elif self._paused:
            standby = self._ownership is not None and self._ownership.other
            self._status.state(
                CellState.PAUSED, f"paused by the operator{', another cell is active' if standby else ''}"
            )
        elif self._ownership is not None and self._ownership.other:
            self._status.state(CellState.STANDBY, "another cell is active")
        elif reason := self._pause_reason():
            self._status.state(CellState.PAUSED, reason)
        else:
            self._status.state(CellState.UP)
        if self._halted or self._resting or self._is_clogged or self._paused or self._marks_away:
            self._subscription.pause()
        else:
            self._subscription.resume()

    def _pause_reason(self) -> str:
        """Return what the cell waits for before it goes on by itself, empty if for nothing."""
        if self._open_breaker:
            return f"circuit breaker {self._open_breaker} is open"
        if self._marks_away:
            return f"the idempotency marks are away: {self._marks_away}"
        if not self._is_clogged:
            return ""
        reasons = []
        if self._blocked:
            reasons.append(
                f"{self._blocked} deliveries wait behind failed ones that are tried again in place"
            )
        if self._gated:
            reasons.append(f"{self._gated} deliveries wait for an open circuit breaker")
        return ", ".join(reasons)

    async def _watch(self) -> None:
        while True:
            await self._heartbeats(CHECK_SECONDS)
            if not self._prepared:
                continue
            stalled = self._watchdog.stalled
            try:
                await self._watchdog.look()
            except Stalled:
                raise
            except BrokerError as error:
                _log.debug("the watchdog has no answer", error=str(error))
            if stalled != self._watchdog.stalled:
                self._show_state()

    def _rebuild(self) -> None:
        self._subscription.reconnected()

    def _may_stand_still(self) -> bool:
        """Return whether nothing has to happen, as far as the cell can tell without asking the server."""
        return (
            self._draining
            or bool(self._halted or self._open_breaker or self._is_clogged or self._paused)
            or bool(self._marks_away)
            or self._client is None
            or not self._client.is_connected
            or bool(self._ownership is not None and self._ownership.other)
            # What runs has a deadline, and what waits for its time a timer.
            or not (self._mailbox.is_empty() or self._lanes.is_stuck())
        )

    async def _waiting(self) -> int:
        """Return how many messages the server could deliver now, or the lanes could begin."""
        assert self._client is not None
        if not self._mailbox.is_empty():
            return len(self._mailbox)
        info = await api.consumer_info(self._client, self._start.spec.stream, self._start.spec.durable)
        return 0 if info is None or info.get("paused") else int(info["num_pending"])

    def _fail(self, error: BrokerError | ActorFailed) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)


def failure_text(error: BaseException) -> str:
    """Return why a cell has failed, in words."""
    return str(error) if isinstance(error, ActorFailed) else error_text(error)


async def _call(call: Callable[[], Awaitable[None] | None], hook: Callable[..., Any]) -> None:
    """Run a user's hook: in the event loop if it is a coroutine function, else in a thread."""
    if inspect.iscoroutinefunction(hook):
        result = call()
        assert result is not None
        await result
    else:
        await asyncio.to_thread(call)
