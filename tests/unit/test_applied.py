"""The applied sequences of a state: a set that is stored small and shrinks by blocks."""

from __future__ import annotations

import random

import msgspec
import pytest

from understudy.runtime.cell.applied import Applied
from understudy.runtime.cell.epochs import Epochs


def drop(applied: Applied, epochs: Epochs) -> None:
    """Do what the next commit does."""
    applied.begin(epochs.now)
    applied.drop(epochs.is_over)


@pytest.mark.parametrize("seed", range(20))
def test_it_holds_what_was_added_and_nothing_else_stored_or_not(seed: int) -> None:
    chosen = random.Random(seed)
    numbers = list(dict.fromkeys(chosen.choices(range(1, 10 ** chosen.randint(2, 12)), k=300)))
    if seed % 2:
        numbers.sort()
    else:
        numbers += range(10**13, 10**13 + 50)
    applied = Applied()
    for number in numbers:
        applied.add(number)
    again = Applied(applied.encode())
    for held in (applied, again):
        assert len(held) == len(numbers)
        assert all(number in held for number in numbers)
        assert not any(number + 1 in held for number in numbers if number + 1 not in numbers)
    assert applied.most_bytes >= len(msgspec.msgpack.encode(applied.encode()))


def test_what_follows_each_other_takes_a_few_bytes() -> None:
    applied = Applied()
    for number in range(1_000_000, 1_100_000):
        applied.add(number)
    assert applied.encode() == [(1_000_000, [0, 99_999])]


def test_blocks_are_dropped_when_their_epochs_are_over() -> None:
    """What goes on in the next epoch doesn't keep the last one's."""
    applied, epochs = Applied(), Epochs(0)
    for number in (1, 2):
        applied.add(number)
        applied.settled(epochs.now)
    epochs.confirmed(epochs.end(), 0)
    drop(applied, epochs)
    applied.add(3)
    applied.settled(epochs.now)
    assert 1 in applied, "a broker that is killed now may have forgotten its ack"
    epochs.confirmed(epochs.end(), 0)
    drop(applied, epochs)
    assert [number in applied for number in (1, 2, 3)] == [False, False, True]


def test_what_was_acked_before_the_connection_was_lost_stays() -> None:
    applied, epochs = Applied(), Epochs(0)
    applied.add(1)
    applied.settled(epochs.now)
    epochs.disconnected()
    for _ in range(3):
        epochs.confirmed(epochs.end(), 0)
        drop(applied, epochs)
    assert 1 in applied


def test_a_block_that_was_added_to_counts_from_its_first_epoch() -> None:
    """Its first sequences may be those whose acks were lost."""
    applied, epochs = Applied(), Epochs(0)
    applied.add(1)
    applied.settled(epochs.now)
    epochs.disconnected()
    epochs.end()
    applied.add(2)
    applied.settled(epochs.now)
    for _ in range(3):
        epochs.confirmed(epochs.end(), 0)
    drop(applied, epochs)
    assert 1 in applied


def test_what_another_cell_has_stored_is_over_in_no_epoch() -> None:
    epochs, loaded = Epochs(0), Applied([(7, [0, 1])])
    loaded.settled(epochs.now)
    for _ in range(3):
        epochs.confirmed(epochs.end(), 0)
        drop(loaded, epochs)
    assert 7 in loaded
    assert 8 in loaded


def test_what_is_not_settled_stays() -> None:
    applied, epochs = Applied(), Epochs(0)
    applied.add(1)
    for _ in range(3):
        epochs.confirmed(epochs.end(), 0)
        drop(applied, epochs)
    assert 1 in applied


def test_the_ack_floor_counts_an_epoch_later() -> None:
    epochs = Epochs(5)
    assert epochs.floor == 0
    epochs.confirmed(epochs.end(), 9)
    assert epochs.floor == 5
    epochs.confirmed(epochs.end(), 12)
    assert epochs.floor == 9
