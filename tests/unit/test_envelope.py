"""Sequences and server times of one life of the stream agree (flow rule 3)."""

from uuid import UUID

from cenote.engine.batch import Delivery
from cenote.engine.rewind import Envelope, later_life
from cenote.kv.message import Message
from cenote.sql.rows import HighWater, Row, SqlVersion


def at(sequence: int, time_us: int) -> Delivery:
    return Delivery(Message("s", sequence, time_us, b"", b""), b"")


def odd(envelope: Envelope, *taken: tuple[int, int]) -> list[tuple[int, bool]]:
    return [(one.message.sequence, later) for one, later in envelope.odd([at(*pair) for pair in taken])]


def test_what_agrees_passes_and_is_remembered() -> None:
    envelope = Envelope(HighWater(10, 100))
    assert odd(envelope, (11, 101), (12, 101), (3, 30), (12, 101), (10, 100)) == []
    assert (envelope.sequence, envelope.time_us) == (12, 101)


def test_a_later_life_has_lower_sequences_at_later_times() -> None:
    assert odd(Envelope(HighWater(10, 100)), (8, 101), (10, 102), (9, 99)) == [(8, True), (10, True)]


def test_a_step_back_of_the_clock_goes_by_sequence_and_hides_nothing_later() -> None:
    envelope = Envelope(HighWater(10, 100))
    assert odd(envelope, (11, 50), (12, 51)) == [(11, False), (12, False)]
    assert (envelope.sequence, envelope.time_us) == (12, 100)
    assert odd(envelope, (10, 100), (13, 101)) == []


def test_an_epoch_without_flushes_finds_nothing_odd() -> None:
    assert odd(Envelope(None), (5, 7), (6, 8)) == []


def test_a_refused_row_is_of_a_later_life_only_in_its_own_epoch() -> None:
    row = Row(UUID(int=1), "k", "1", None, 5, 2, 100, False, False, None)
    assert later_life(row, SqlVersion(2, 5, 99))
    assert later_life(row, SqlVersion(2, 9, 99))
    assert not later_life(row, SqlVersion(2, 9, 100))
    assert not later_life(row, SqlVersion(2, 4, 99))
    assert not later_life(row, SqlVersion(3, 9, 99))
    assert not later_life(row, None)
