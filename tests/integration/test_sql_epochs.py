"""Epochs begin and change by compare-and-set; rows go over to the epoch their time belongs to."""

import asyncio
from uuid import UUID, uuid4

import pytest
from pg_server import GUARD, NOW_US, STORE, beat, database, db, pg, row, table

from cenote.sql.migrate import migrate
from cenote.sql.pool import Database
from cenote.sql.rows import Claim, Guard, NewEpoch
from cenote.sql.state import StateTable

__all__ = ["db", "pg", "table"]  # fixtures


def epoch(incarnation: str, from_us: int = NOW_US, created: str = "created-2") -> NewEpoch:
    return NewEpoch(from_us, STORE, created, incarnation, "1/1", "test")


async def test_the_first_epoch_begins_once(table: StateTable) -> None:
    assert not await table.insert_epoch(None, epoch("other"))
    (only,) = await table.epochs()
    assert only == (1, 0, STORE, "created-1", "start-1", "1/1", "the first")


async def test_only_one_of_many_changes_the_epoch(table: StateTable) -> None:
    began = await asyncio.gather(*(table.insert_epoch((1, "start-1"), epoch(f"s{i}")) for i in range(8)))
    assert began.count(True) == 1
    old, new = await table.epochs()
    assert old.incarnation is None
    assert (new.epoch, new.incarnation) == (2, f"s{began.index(True)}")


async def test_a_change_needs_the_incarnation_it_saw(table: StateTable) -> None:
    assert not await table.insert_epoch((1, "start-0"), epoch("start-2"))
    assert not await table.set_incarnation(1, "start-0", "start-2")
    assert await table.set_incarnation(1, "start-1", "start-2")
    assert not await table.insert_epoch((1, "start-1"), epoch("start-3"))
    assert await table.insert_epoch((1, "start-2"), epoch("start-3"))
    assert not await table.set_incarnation(1, "start-2", "start-4"), "that epoch is over"


async def test_rows_go_over_to_the_epoch_of_their_time(table: StateTable) -> None:
    agent = uuid4()
    rows = [row(agent, f"k{us}", 5, kv_time_us=NOW_US + us) for us in (-1, 0, 1)]
    await table.flush(rows, GUARD, beat())
    assert await table.insert_epoch((1, "start-1"), epoch("start-2"))
    assert await table.versions((agent, r.key) for r in rows) == {
        (agent, "k-1"): (1, 5, NOW_US - 1),
        (agent, "k0"): (2, 5, NOW_US),
        (agent, "k1"): (2, 5, NOW_US + 1),
    }


@pytest.mark.parametrize(
    ("claim", "same"),
    [
        (Claim("created-2", NOW_US, frozenset({STORE}), ""), True),
        (Claim("created-2", NOW_US, frozenset(), "home-1"), True),
        (Claim("created-2", NOW_US, frozenset(), ""), False),
        (Claim("created-2", NOW_US, frozenset(), "home-9"), False),
        (Claim("created-2", NOW_US, frozenset({str(uuid4())}), "home-1"), False),
        (Claim("created-2", NOW_US, frozenset({STORE, str(uuid4())}), "home-1"), False),
    ],
    ids=["same store", "same home", "nothing", "other home", "other store", "two stores"],
)
async def test_a_stream_that_may_be_another_one_begins_no_epoch(table: StateTable, claim: Claim, same: bool) -> None:
    await table.settle_epoch(Claim("created-1", 0, frozenset({STORE}), "home-1"))
    rows = await table.settle_epoch(claim)
    assert [row.stream_created for row in rows] == ["created-1", "created-2"][: 1 + same]
    assert await table.settle_epoch(claim) == rows, "known by now, or still refused"
    if same:
        newest = rows[-1]
        assert (newest.epoch, newest.from_us, newest.store_id) == (2, NOW_US, STORE)
        assert await table.set_incarnation(2, "", "start-10")
        assert await table.flush([row(epoch=2)], Guard(2, "start-10"), beat()) is not None


async def test_an_empty_database_is_not_for_a_stream_that_names_a_store(db: Database) -> None:
    table = StateTable(db, db.names)
    assert await table.settle_epoch(Claim("created-1", NOW_US, frozenset({STORE}), "")) == []
    assert len(await table.settle_epoch(Claim("created-1", NOW_US, frozenset(), ""))) == 1


async def test_many_processes_settle_an_empty_database_at_once(pg: object, db: Database) -> None:
    tables = [StateTable(db, db.names) for _ in range(6)]
    claim = Claim("c", NOW_US, frozenset(), "")
    settled = await asyncio.gather(*(each.settle_epoch(claim) for each in tables))
    assert len({tuple(rows) for rows in settled}) == 1
    ((first,),) = {tuple(rows) for rows in settled}
    assert first.epoch == 1
    assert UUID(first.store_id).version == 4


async def test_namespaces_do_not_see_each_other(table: StateTable, pg: object, db: Database) -> None:
    other = database(pg)  # type: ignore[arg-type]  # the fixture's own type
    await migrate(other, "auto")
    assert await StateTable(other, other.names).epochs() == []
    assert len(await table.epochs()) == 1
    await other.close()
