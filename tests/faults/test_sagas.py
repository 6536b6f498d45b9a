"""A saga's cell killed at every point where it awaits something, forwards and backwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.nats import NatsServer
from support.running import Running, running, until
from support.saga_app import APP, BACKWARDS, FORWARDS, MODES, SAGAS
from support.saga_records import is_over, over, records
from support.saga_rolled import APP as ROLLED
from support.saga_rolled import DEADLY, PATIENT
from support.saga_service import Service
from support.saga_soak import differences_of, publish, soak
from support.streams import count_messages
from understudy.actors.saga import SagaRecord
from understudy.actors.saga_position import Phase, Position

ENDS = {"forwards": (Phase.COMPLETED, FORWARDS), "backwards": (Phase.COMPENSATED, BACKWARDS)}


def run_to_their_ends(url: str, run: Running, sagas: list[str]) -> None:
    """Start sagas, and wait until each has ended as it should."""
    publish(url, sagas)

    def are_over() -> bool:
        assert run.process is not None
        assert run.process.poll() is None, run.log()
        found = records(url, f"{APP}-state")
        return over({saga: found[saga] for saga in sagas if saga in found}) == len(sagas)

    until(are_over, 240)
    found = records(url, f"{APP}-state")
    phases = {saga: found[saga].position.phase for saga in sagas}
    assert phases == {saga: ENDS[saga.partition("-")[0]][0] for saga in sagas}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ENDS)
def test_a_death_at_any_await_leaves_a_saga_whole_and_each_effect_once(
    nats_server: NatsServer, tmp_path: Path, way: str
) -> None:
    """The points are those that a saga passes whose cell isn't killed; each then has a saga of its own."""
    with (
        Service() as service,
        running(
            nats_server.url,
            tmp_path,
            "support.saga_app:app",
            SERVICE_PORT=str(service.port),
            SAGA_DIRECTORY=str(tmp_path),
        ) as run,
    ):
        run_to_their_ends(nats_server.url, run, [way])
        points = sorted(set((tmp_path / "points").read_text().split()))
        # Each of its deliveries reads the state, and is settled when what it published is confirmed.
        for mode in MODES:
            assert f"{way}-go0-handle-1-{mode}" in points
            assert f"{way}-Delayed-finish-1-{mode}" in points
        assert len(points) > 40
        sagas, left = [way], points
        for turn in range(3):
            # All at once: each death hits the others of its cell, too, wherever they are.
            begun = [f"{point}_{turn}" for point in left]
            run_to_their_ends(nats_server.url, run, begun)
            sagas += begun
            # One that others' deaths have led around its point has another try.
            left = sorted(set(points) - {path.stem for path in tmp_path.glob("*.done")})
        assert not left
        generations = [int(run.cell(f"{saga}/0")["supervision"]["generation"]) for saga in SAGAS]
        # Two that are to die at one moment die together.
        assert sum(generations) > len(points) // 3
    _, effects = ENDS[way]
    assert {saga: service.of(saga) for saga in sagas} == dict.fromkeys(sagas, effects)
    assert len(service.ledger) == len(set(service.ledger))


@pytest.mark.timeout(120)
def test_a_step_that_kills_its_process_each_time_leaves_its_saga_stuck(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Not a dead letter, and a saga that would be listed as running for ever; the others go on."""
    deadly, other = f"{PATIENT}-{DEADLY}", f"{PATIENT}-other"
    bucket = f"{ROLLED}-state"
    with running(nats_server.url, tmp_path, "support.saga_rolled:app") as run:
        publish(nats_server.url, [deadly, other])

        def are_there() -> bool:
            found = records(nats_server.url, bucket)
            return len(found) == 2 and found[other].position.waiting and is_over(found[deadly])

        until(are_there, 60)
        assert run.terminate() == 0
    position = records(nats_server.url, bucket)[deadly].position
    assert (position.phase, position.step, position.direction) == (Phase.STUCK, "reserve", "do")
    assert position.problem.startswith("reserve: its process died 3 times: ")
    assert (tmp_path / "record").read_text().count(f"{deadly} reserve do") == 3
    assert count_messages(nats_server.url, f"{ROLLED.upper()}_DEAD_LETTERS") == 0


@pytest.mark.timeout(300)
def test_sagas_over_a_service_that_fails_hangs_and_lies_all_end(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """With cells killed meanwhile; `support.saga_soak` is the long form, in which the broker is, too."""
    account = soak(nats_server, tmp_path, sagas=100, kills=3, seed=7)
    assert account.differences == []
    assert account.kills == 3
    assert account.phases["completed"] > 50
    assert account.phases["compensated"] > 0
    assert {"fails", "refuses", "works"} <= account.behaved.keys()


@pytest.mark.parametrize(
    ("phase", "effects"),
    [
        (Phase.COMPLETED, FORWARDS[:3]),
        (Phase.COMPLETED, [*FORWARDS, "charge undo"]),
        (Phase.COMPENSATED, ["reserve do", "charge do", "charge undo"]),
        (Phase.COMPENSATED, ["reserve do", "charge do", "reserve undo", "charge undo"]),
        (Phase.RUNNING, []),
    ],
)
def test_the_soak_finds_out_what_should_not_be(phase: Phase, effects: list[str]) -> None:
    """Else it would prove nothing."""
    found = {"s": SagaRecord(id="s", position=Position(phase=phase))}
    ledger = [f"air.rebooking.s.{effect.replace(' ', '.')}" for effect in effects]
    assert len(differences_of(["s"], found, ledger)) == 1
