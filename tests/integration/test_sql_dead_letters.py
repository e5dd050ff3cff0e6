"""Quarantine: a refused write advances its row, keeps its bytes, and leaves a letter (flow rule 14)."""

from uuid import uuid4

import pytest
from pg_server import GUARD, NOW_US, beat, db, pg, row, table

from cenote.sql.errors import DataRefused
from cenote.sql.rows import DeadLetter, Guard, Row
from cenote.sql.state import StateTable

__all__ = ["db", "pg", "table"]  # fixtures

BYTES = b'{"a": "\\u0000\xff"}'


async def quarantined(table: StateTable, sent: Row, guard: Guard = GUARD) -> int | None:
    outcome = await table.flush_one_quarantined(sent, guard, beat(9), reason="22P05", envelope="1;j;op;;")
    return None if outcome is None else outcome.applied


async def only_letter(table: StateTable) -> DeadLetter:
    (letter,) = await table.dead_letters(0, 10)
    return letter


async def test_the_row_advances_and_the_letter_says_why(table: StateTable) -> None:
    agent = uuid4()
    await table.flush([row(agent, version=5)], GUARD, beat())
    sent = row(agent, version=9, value=None, raw=BYTES, expires_us=NOW_US)
    assert await quarantined(table, sent) == 1
    assert await table.read(agent, "k") == sent._replace(quarantined=True)
    letter = await only_letter(table)
    assert letter[1:9] == (agent, "k", 1, 9, NOW_US + 9, "22P05", BYTES, "1;j;op;;")
    assert await table.dead_letter(letter.id) == letter
    (heartbeat,) = await table.heartbeats()
    assert (heartbeat.high_water, heartbeat.commits, heartbeat.rows) == (9, 2, 2)


async def test_redelivery_writes_no_second_letter(table: StateTable) -> None:
    sent = row(raw=BYTES)
    assert [await quarantined(table, sent), await quarantined(table, sent)] == [1, 0]
    assert await only_letter(table)


async def test_what_sql_has_newer_is_not_quarantined(table: StateTable) -> None:
    agent = uuid4()
    newer = row(agent, version=9)
    await table.flush([newer], GUARD, beat())
    assert await quarantined(table, row(agent, version=8, raw=BYTES)) == 0
    assert await table.dead_letters(0, 10) == []
    assert await table.read(agent, "k") == newer


async def test_the_guard_holds_for_letters_too(table: StateTable) -> None:
    sent = row(raw=BYTES)
    assert await quarantined(table, sent, Guard(1, "start-2")) is None
    assert await table.dead_letters(0, 10) == []
    assert await table.read(sent.agent_id, "k") is None


async def test_a_letter_tried_again_mends_its_row_under_its_own_version(table: StateTable) -> None:
    sent = row(raw=BYTES, version=9)
    await quarantined(table, sent)
    letter = await only_letter(table)
    with pytest.raises(DataRefused):
        await table.retry_dead_letter(letter.id, '"\\u0000"', None)
    assert await only_letter(table) == letter
    assert await table.retry_dead_letter(letter.id, '{"mended": true}', BYTES)
    assert await table.read(sent.agent_id, "k") == sent._replace(value='{"mended": true}')
    assert await table.dead_letters(0, 10) == []
    assert not await table.retry_dead_letter(letter.id, "1", None)


async def test_a_letter_overtaken_by_a_newer_write_changes_nothing(table: StateTable) -> None:
    sent = row(raw=BYTES, version=9)
    await quarantined(table, sent)
    newer = row(sent.agent_id, version=10)
    await table.flush([newer], GUARD, beat())
    assert not await table.retry_dead_letter((await only_letter(table)).id, "1", None)
    assert await table.read(sent.agent_id, "k") == newer
    assert await table.dead_letters(0, 10) == []


async def test_a_discarded_letter_leaves_the_bytes_in_service(table: StateTable) -> None:
    sent = row(raw=BYTES)
    await quarantined(table, sent)
    letter = await only_letter(table)
    assert await table.discard_dead_letter(letter.id)
    assert not await table.discard_dead_letter(letter.id)
    assert await table.dead_letter(letter.id) is None
    found = await table.read(sent.agent_id, "k")
    assert found is not None
    assert found.raw == BYTES


async def test_letters_are_paged_oldest_first(table: StateTable) -> None:
    for n in range(5):
        await quarantined(table, row(key=f"k{n}", raw=BYTES))
    first = await table.dead_letters(0, 3)
    rest = await table.dead_letters(first[-1].id, 3)
    assert [letter.key for letter in first + rest] == [f"k{n}" for n in range(5)]
