"""The data side of a cell: one actor instance, its subscription, its lanes, from start to drain."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from understudy.actors.errors import BrokerError, DeclarationError
from understudy.actors.state import StateCodec
from understudy.runtime.app import App
from understudy.runtime.breakers.breakers import Breakers
from understudy.runtime.breakers.record import CLOSED
from understudy.runtime.cell.asks import Asks
from understudy.runtime.cell.cellfile import CellFile, Identity, boot_id
from understudy.runtime.cell.condition import Condition
from understudy.runtime.cell.delivery import HeldDelivery
from understudy.runtime.cell.epochs import end_epochs
from understudy.runtime.cell.extending import extend
from understudy.runtime.cell.failures import ActorFailed, error_text
from understudy.runtime.cell.fetch_ahead import FetchAhead
from understudy.runtime.cell.heartbeat import Heartbeat
from understudy.runtime.cell.hooks import start_actor, stop_actor
from understudy.runtime.cell.intake import Intake
from understudy.runtime.cell.lanes import Lanes
from understudy.runtime.cell.mailbox import Mailbox
from understudy.runtime.cell.opening import find_consumer, open_mark_store, open_state_store, with_max_age
from understudy.runtime.cell.ownership import SoleOwner
from understudy.runtime.cell.paused import read_paused
from understudy.runtime.cell.pipeline import Pipeline
from understudy.runtime.cell.start import CellStart
from understudy.runtime.cell.state import States
from understudy.runtime.cell.status import (
    BreakerStatus,
    CellState,
    Pause,
    boottime,
)
from understudy.runtime.cell.takeover import TakenOver, Takeover
from understudy.runtime.cell.timers import CountedTimers
from understudy.runtime.cell.tracing import Tracing
from understudy.runtime.cell.watchdog import Stalled, Watchdog
from understudy.runtime.jetstream import api, connection
from understudy.runtime.jetstream.changes import NANOSECONDS
from understudy.runtime.jetstream.connection import Connection
from understudy.runtime.jetstream.pinning import Pin, pinned_id
from understudy.runtime.jetstream.publish_window import PublishWindow
from understudy.runtime.jetstream.settlement import ACKS, BURST, Settlement
from understudy.runtime.jetstream.subscription import LOOK_SECONDS, PullSubscription
from understudy.runtime.jetstream.topology import (
    attempts_bucket,
    breakers_bucket,
    breakers_news,
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
        self._child = app.child(start.spec.actor)
        self._streams = app.spec().streams
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
        self._breakers = Breakers(
            self._child.breakers,
            changed=self._on_breaker,
            count=self._status.count,
            called=self._status.counts.called,
            # What its predecessor has claimed isn't its own.
            me=f"{start.spec.name}@{start.run.run_id}.{secrets.token_hex(4)}",
            call_bound_seconds=self._options.handler_timeout_seconds,
        )
        self._stop = asyncio.Event()
        # Whether its actor has asked for that.
        self.stopped_itself = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: asyncio.Future[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        self._heartbeat = Heartbeat(self._status, self._options.hang_timeout_seconds, self._on_beat)
        self._received_before = 0
        self._condition = Condition(self._options, changed=self._show_state)
        batch_sizes = [
            handler.batch.size for handler in self._child.spec.handlers if handler.batch is not None
        ]
        self._fetch_ahead = FetchAhead(
            self._options.mailbox.capacity,
            self._options.concurrency * max(batch_sizes, default=1),
            start.spec.ack_wait_seconds,
        )
        self._client: Connection | None = None
        self._tracing: Tracing | None = None
        self._states: States | None = None
        self._states_away = ""
        # Made when the connection stands and the actor has started, before any delivery.
        self._prepared = False
        self._breaker_is_open = False
        if self._child.breakers:
            self._status.counts.declare(self._child.breakers)
            self._show_breakers()
        self._ownership: SoleOwner | None = None
        self._pin: Pin | None = None
        self._settlement: Settlement
        self._intake: Intake
        self._subscription: PullSubscription
        self._pipeline: Pipeline
        self._lanes: Lanes
        self._watchdog: Watchdog

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
            asyncio.create_task(self._heartbeat.run(), name="understudy-heartbeat"),
        ]
        try:
            preparing = asyncio.create_task(self._prepare(), name="understudy-prepare")
            await self._until_stop([preparing])
            if preparing.done():
                ready()
                self._show_state()
                actor, taken_over = preparing.result()
                feeding = asyncio.create_task(self._feed(taken_over), name="understudy-feed")
                self._background.append(feeding)
                await self._until_stop([*self._background, *self._lanes.workers, self._lanes.broken])
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
            if self._tracing is not None:
                await self._tracing.end(failed=False)
            return problem
        except BaseException as error:
            self._status.state(CellState.FAILED, failure_text(error))
            if self._tracing is not None:
                await self._tracing.end(failed=True)
            raise
        finally:
            # Nobody waits for it any more: that the connection is closed now is no failure.
            self._failure.cancel()
            for task in self._background:
                task.cancel()
            if self._prepared:
                self._lanes.end()

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
        if paused == self._condition.paused:
            return
        self._condition.paused = paused
        _log.info("paused by the operator" if paused else "resumed by the operator")
        if self._prepared:
            self._pause_lanes()
            self._show_state()
        self._show_pause()

    @property
    def capacity(self) -> int:
        """How many deliveries it may hold."""
        return self._options.mailbox.capacity

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
        self._tracing = Tracing.begin(self._start)
        self._client = client = await connection.connect(
            run.connection,
            name=f"{run.app}/{spec.name}",
            on_state=self._on_connection,
            on_denied=self._on_denied,
        )
        self._on_connection("connected")
        stream, consumer = await find_consumer(client, self._start, self._options)
        self._streams = with_max_age(self._streams, stream["config"])
        # A newer revision of the app, on another node, may have given it less time than we declare.
        self._ack_wait_seconds = min(self._ack_wait_seconds, consumer["config"]["ack_wait"] / NANOSECONDS)
        self._file.bind(
            msgspec.structs.replace(
                self._file.identity, stream_created=stream["created"], consumer_created=consumer["created"]
            )
        )
        window = PublishWindow(client, confirmed=self._status.counts.published)
        await window.open()
        if self._child.breakers:
            store = await BreakerStore.open(
                client, breakers_bucket(run.app), breakers_news(run.app), self._breakers.hear
            )
            await self._breakers.share(store, self._child.breaker_keys)
        self._settlement = Settlement(
            client, self._burst_ended, burst=max(1, min(BURST, self._mailbox.bound // ACKED_SHARE))
        )
        extending = extend(
            client, self._settlement, self._mailbox, self._ledger, self._heartbeat, self._ack_wait_seconds
        )
        self._background.append(asyncio.create_task(extending, name="understudy-extend"))
        attempts = await AttemptStore.open(client, attempts_bucket(run.app), spec.durable, stream["created"])
        mark_store = await open_mark_store(client, window, self._start, self._options)
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
        state_store = await open_state_store(client, window, self._start, self._options)
        if state_store is not None:
            self._open_states(state_store, client, stream["created"], consumer["ack_floor"]["stream_seq"])
        actor = await start_actor(self._child, self._start)
        self._assemble(actor, client, window, attempts, mark_store)
        return actor, taken_over

    def _assemble(
        self,
        actor: Any,
        client: Connection,
        window: PublishWindow,
        attempts: AttemptStore,
        mark_store: KvMarks | None,
    ) -> None:
        """Make what handles deliveries, before any comes: nothing here waits for anything."""
        spec = self._start.spec
        timers = CountedTimers(client, self._streams, spec.durable, self._status.counts)
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
            states=self._states,
            timers=timers,
            asks=Asks(client, window, self._child.spec, f"{self._start.run.app}/{spec.actor}", self._status),
            settled=self._burst_ended,
            marks_away=self._condition.marks_away,
            undecodable=self._on_undecodable,
            actor_failed=self._actor_failed,
            stop=self._stop_itself,
        )
        if self._tracing is not None:
            self._tracing.attach(self._pipeline, self._file.identity, client)
        self._lanes = Lanes(
            concurrency=self._options.concurrency,
            hang_timeout_seconds=self._options.hang_timeout_seconds,
            handle=self._pipeline.handle,
            wait_seconds=self._breakers.wait_seconds,
            mode_changed=self._condition.mode,
            blocked_changed=self._on_blocked,
            gated_changed=self._on_gated,
            drop=self._drop,
            idle=self._on_idle,
            batches=self._pipeline.batches,
            declared=frozenset(name for handler in self._child.spec.handlers for name in handler.breakers),
            handle_line=None if self._pipeline.stateful is None else self._pipeline.stateful.handle,
        )
        self._intake = Intake(
            identity=self._file.identity,
            mailbox=self._mailbox,
            ledger=self._ledger,
            settlement=self._settlement,
            status=self._status,
            heartbeat=self._heartbeat,
            prepare=timers.counting(self._pipeline.prepare, spec.stream),
            begin=self._lanes.add,
        )
        self._received_before = self._intake.received
        self._subscription = PullSubscription(
            client,
            spec.stream,
            spec.durable,
            self._file.identity.consumer_created,
            self._mailbox,
            self._settlement,
            self._intake.deliver,
            self._fail,
            self._pin,
            self._options.concurrency,
            self._heartbeat.wake,
        )
        self._watchdog = Watchdog(
            durable=spec.durable,
            progress=lambda: self._mailbox.settled + self._intake.received,
            excused=self._may_stand_still,
            waiting=self._waiting,
            rebuild=self._subscription.reconnected,
            restarted_for_this=self._start.reason.startswith(Stalled.__name__),
        )
        self._lanes.start()
        self._pause_lanes()
        self._prepared = True
        for name in self._child.breakers:
            self._lanes.breaker_changed(name)
        watching = self._watchdog.run(self._heartbeat, self._show_state)
        self._background.append(asyncio.create_task(watching, name="understudy-watchdog"))

    def _open_states(self, store: StateStore, client: Connection, stream_created: str, floor: int) -> None:
        assert self._options.state is not None
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

    async def _feed(self, taken_over: TakenOver) -> None:
        """Handle what was taken over, in order and each suspect alone, then what the stream has."""
        if taken_over.pin_id:
            # The start may have taken longer than the pin lives, in a hook that holds up the event loop.
            await self._look_for_owner()
        for delivery in taken_over.held:
            if delivery not in taken_over.suspects:
                self._intake.take_over(delivery)
                continue
            # Not before earlier ones of its key, which a state may have been about to be stored with.
            await self._quiet_and_unpaused()
            self._intake.take_over(delivery)
            await self._quiet_and_unpaused()
        self._set_limit()
        await self._subscription.start()

    async def _quiet_and_unpaused(self) -> None:
        """Wait for the lanes, and drop what was taken over if it is another's meanwhile."""
        waiting = asyncio.create_task(self._lanes.quiet_and_unpaused(), name="understudy-quiet")
        try:
            while not (await asyncio.wait({waiting}, timeout=LOOK_SECONDS))[0]:
                if self._pin is not None:
                    # A pause may last for hours, and the subscription doesn't look yet.
                    await self._look_for_owner()
        finally:
            waiting.cancel()

    async def _look_for_owner(self) -> None:
        with contextlib.suppress(BrokerError):
            await self._subscription.look_for_owner()

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
        self._condition.draining = True
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
            self._status.counts.count("given_back", len(held))
        if self._pin is not None and self._client.is_connected:
            await self._pin.hand_over(self._client, self._start.spec.stream, self._start.spec.durable)
        await stop_actor(actor)
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

    def _drop(self, delivery: HeldDelivery) -> None:
        """Let go of what has failed, or wasn't stored, and is another cell's by now."""
        self._mailbox.release(delivery)
        self._status.counts.count("given_back")
        self._burst_ended()

    def _burst_ended(self) -> None:
        """Hear that deliveries were settled."""
        self._report()
        if self._prepared:
            idle = self._mailbox.is_empty()
            self._fetch_ahead.observe(time.monotonic(), self._mailbox.settled, idle=idle)
            self._set_limit()
            self._subscription.settled()

    def _pause_lanes(self) -> None:
        if self._condition.paused:
            self._lanes.pause()
        else:
            self._lanes.resume()

    def _show_pause(self) -> None:
        """Say how far the operator's pause has come."""
        if not self._condition.paused:
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
        if self._prepared:
            self._intake.report()
            self._pipeline.report()

    def _show_room(self) -> None:
        """Say how much is held and asked for, as far as it isn't said at each burst."""
        self._status.gauge("held_bytes", self._mailbox.bytes)
        if self._prepared:
            self._status.gauge("credit", self._subscription.credit)
            self._status.gauge("publish_window", self._pipeline.unconfirmed)

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

    def _on_beat(self) -> bool:
        """Bring the status up to date; return whether nothing has happened since the last time."""
        self._report()
        self._show_room()
        self._show_pause()
        if self._breaker_is_open:
            # What waits for it comes and goes.
            self._show_breakers()
        if not self._prepared:
            return False
        self._show_states()
        received, self._received_before = self._received_before, self._intake.received
        return self._mailbox.is_empty() and received == self._received_before

    def _on_connection(self, state: str) -> None:
        self._status.gauge("connected", int(state == "connected"))
        if self._states is not None and state != "connected":
            self._states.epochs.disconnected()
        if state == "closed" and not self._condition.draining:
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
        states = self._breakers.states()
        self._breaker_is_open = any(one.state != CLOSED for one in states)
        self._status.breakers(
            [
                BreakerStatus(
                    name=one.name,
                    state=one.state,
                    since=one.since and one.since - behind,
                    # An actor's own is known to the cells that share it by the actor's name too.
                    of_app=self._child.breaker_keys[one.name] == one.name,
                    holds_up=one.state != CLOSED and self._waits_for(one.name),
                )
                for one in states
            ]
        )

    def _waits_for(self, breaker: str) -> bool:
        if not self._prepared:
            return False
        return self._condition.open_breaker == breaker or self._lanes.waits_for(breaker)

    def _on_blocked(self, waiting: int) -> None:
        self._condition.blocked(waiting)
        self._set_limit()

    def _on_gated(self, waiting: int) -> None:
        self._condition.gated(waiting)
        self._set_limit()

    def _set_limit(self) -> None:
        """Bound what is fetched ahead; what can't go on doesn't take its place."""
        limit = self._fetch_ahead.limit + self._condition.room_for_waiting
        self._mailbox.limit = min(self._mailbox.bound, limit)

    def _on_undecodable(self, error: str) -> None:
        self._halt(f"too many deliveries in a row can't be read, the last because: {error}")

    def _on_denied(self, subject: str) -> None:
        """Hear where the server doesn't let us publish; what isn't acked would be handled again for ever."""
        if self._prepared and subject.startswith(ACKS.lower()):
            self._halt(
                f"the server denies acks; have it let this user publish to {ACKS}>, then restart the actor"
            )

    def _halt(self, reason: str) -> None:
        self._lanes.halt()
        self._condition.halt(reason)

    def _show_states(self) -> None:
        """Say whether what is held waits for states that can't be read or stored."""
        away = "" if self._states is None or self._mailbox.is_empty() else self._states.away
        if away == self._states_away:
            return
        if not away:
            _log.info("the states are back")
        elif not self._states_away:
            _log.error("the states are away; deliveries are held", error=away)
        self._states_away = away
        self._show_state()

    def _show_state(self) -> None:
        """Say what the cell is doing, and ask for more or not; until it is prepared it is starting."""
        if not self._prepared:
            return
        standby = self._ownership is not None and bool(self._ownership.other)
        stalled = self._watchdog.stalled or self._states_away
        self._status.state(*self._condition.state(stalled=stalled, standby=standby))
        if self._condition.asks_for_nothing:
            self._subscription.pause()
        else:
            self._subscription.resume()

    def _may_stand_still(self) -> bool:
        """Return whether nothing has to happen, as far as the cell can tell without asking the server."""
        return (
            self._condition.may_stand_still
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
