"""Epochs begin and change by compare-and-set; rows go over to the epoch their time belongs to."""

import asyncio
from uuid import UUID, uuid4

from pg_server import GUARD, NOW_US, STORE, beat, database, db, pg, row, table

from cenote.sql.migrate import migrate
from cenote.sql.pool import Database
from cenote.sql.rows import Guard, NewEpoch
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


async def test_a_recreated_stream_begins_the_next_epoch_unless_another_flusher_lives(table: StateTable) -> None:
    async def settle(alive_s: float, store: str | None = STORE, own: str = "g") -> list[str]:
        rows = await table.settle_epoch(
            stream_created="created-2", created_us=NOW_US, store_id=store, alive_s=alive_s, own_flusher=own
        )
        return [known.stream_created for known in rows]

    await table.flush([row()], GUARD, beat())
    assert await settle(60) == ["created-1"], "f has just flushed"
    assert await settle(60, own="f", store=str(uuid4())) == ["created-1"], "another store's stream"
    assert await settle(60, own="f") == ["created-1", "created-2"]
    assert await settle(60) == ["created-1", "created-2"], "known by now"
    newest = (await table.epochs())[-1]
    assert (newest.epoch, newest.from_us, newest.incarnation) == (2, NOW_US, "")
    assert await table.set_incarnation(2, "", "start-2")
    assert await table.flush([row(epoch=2)], Guard(2, "start-2"), beat()) is not None


async def test_many_processes_settle_an_empty_database_at_once(pg: object, db: Database) -> None:
    tables = [StateTable(db, db.names) for _ in range(6)]
    settled = await asyncio.gather(
        *(
            each.settle_epoch(stream_created="c", created_us=NOW_US, store_id=None, alive_s=0, own_flusher=str(i))
            for i, each in enumerate(tables)
        )
    )
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
