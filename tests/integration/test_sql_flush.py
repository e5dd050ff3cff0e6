"""The flush statement: its fence, its guard, its heartbeat, and what it refuses."""

import asyncio
import random
from typing import Any
from uuid import UUID, uuid4

import pytest
from pg_server import GUARD, NOW_US, STORE, beat, database, db, pg, row, table, waits_for_a_lock

from cenote.errors import CenoteError, SetupError
from cenote.sql.errors import DataRefused
from cenote.sql.pool import Database
from cenote.sql.rows import Guard, NewEpoch, Row
from cenote.sql.state import StateTable

__all__ = ["db", "pg", "table"]  # fixtures


async def flushed(table: StateTable, *rows: Row) -> int:
    outcome = await table.flush(rows, GUARD, beat())
    assert outcome is not None
    return outcome.applied


# --- what is written --------------------------------------------------------------------------------------


async def test_every_column_arrives_as_it_was_sent(table: StateTable) -> None:
    agent = uuid4()
    rows = [
        row(agent, "plain"),
        row(agent, "raw", raw=bytes(range(256)), value='{"best": "effort"}'),
        row(agent, "only raw", raw=b"", value=None),
        row(agent, "gone", value=None, deleted=True),
        row(agent, "poison", value=None, raw=b"\x00", quarantined=True),
        row(agent, "mortal", expires_us=NOW_US + 86_400_000_001),
        row(agent, "copy", epoch=0, version=9),
        row(agent, "\x1a0000 | \x1f, \\ ' \" {} é \U0010ffff \x1a001A", value='"\\u001f | {},NULL"'),
    ]
    assert await flushed(table, *rows) == len(rows)
    for sent in rows:
        assert await table.read(agent, sent.key) == sent
    await table.flush([row(agent, key.key, 50) for key in rows], GUARD, beat())
    for sent in rows:
        assert await table.read(agent, sent.key) == row(agent, sent.key, 50), "defaults replace what was there"


@pytest.mark.parametrize("us", [1, NOW_US, 946_684_800_000_001, 4_102_444_800_999_999, 7_000_000_000_000_003])
async def test_times_are_exact_to_the_microsecond(table: StateTable, us: int) -> None:
    sent = row(kv_time_us=us, expires_us=us + 1)
    await flushed(table, sent)
    assert await table.read(sent.agent_id, sent.key) == sent


async def test_a_batch_of_any_order_and_size(table: StateTable) -> None:
    rows = [row(UUID(int=i % 7), f"k{i}", i + 1) for i in range(1200)]
    random.Random(4).shuffle(rows)
    assert await flushed(table, *rows) == 1200
    assert await flushed(table, *rows[:1]) == 0
    assert await table.count_rows() == 1200


async def test_the_clock_of_the_commit_is_postgresqls(table: StateTable, db: Database) -> None:
    before = await db.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
    outcome = await table.flush([row()], GUARD, beat())
    after = await db.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
    assert outcome is not None
    assert before < outcome.committed_us < after


# --- the fence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "sent", "wins"),
    [
        ((1, 5), (1, 6), True),
        ((1, 5), (1, 5), False),
        ((1, 5), (1, 4), False),
        ((1, 5), (2, 1), True),
        ((2, 1), (1, 9), False),
    ],
)
async def test_only_a_newer_version_replaces_a_row(
    table: StateTable, held: tuple[int, int], sent: tuple[int, int], wins: bool
) -> None:
    agent = uuid4()
    first = row(agent, epoch=held[0], version=held[1], value='"first"')
    second = row(agent, epoch=sent[0], version=sent[1], value='"second"')
    assert await flushed(table, first) == 1
    assert await flushed(table, second) == int(wins)
    assert await table.read(agent, "k") == (second if wins else first)


async def test_a_tombstone_is_fenced_like_a_write(table: StateTable) -> None:
    agent = uuid4()
    await flushed(table, row(agent, version=7, deleted=True, value=None))
    assert await flushed(table, row(agent, version=5)) == 0
    found = await table.read(agent, "k")
    assert found is not None
    assert found.deleted


async def test_versions_never_go_down_under_racing_flushers(table: StateTable, db: Database) -> None:
    """I3, with an audit trigger as the witness; and no deadlock, for all lock in one order."""
    await _audit(db)
    agents = [uuid4() for _ in range(3)]
    places = [(agent, f"k{i}") for agent in agents for i in range(40)]
    applied = 0

    async def flusher(seed: int) -> None:
        nonlocal applied
        dice = random.Random(seed)
        for _ in range(40):
            picked = dice.sample(places, 60)
            rows = [row(*place, dice.randrange(1, 10_000)) for place in picked]
            outcome = await table.flush(rows, GUARD, beat(flusher_id=f"f{seed}"))
            assert outcome is not None
            applied += outcome.applied

    await asyncio.gather(*(flusher(seed) for seed in range(4)))
    seen, worse = await _audited(db)
    assert seen == applied - len(places)
    assert seen > 200
    assert worse == 0


async def _audit(db: Database) -> None:
    schema = db.names.schema("agents")
    await db.execute(f"""
        CREATE TABLE {schema}.audit (worse boolean);
        CREATE FUNCTION {schema}.audit() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          INSERT INTO {schema}.audit VALUES ((new.epoch, new.version) < (old.epoch, old.version));
          RETURN NULL;
        END $$;
        CREATE TRIGGER audit AFTER UPDATE ON {schema}.state FOR EACH ROW EXECUTE FUNCTION {schema}.audit()""")


async def _audited(db: Database) -> tuple[int, int]:
    audit = f"{db.names.schema('agents')}.audit"
    found = await db.fetchrow(f"SELECT count(*), count(*) FILTER (WHERE worse) FROM {audit}")
    assert found is not None
    return found[0], found[1]


# --- the guard --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", [Guard(1, "start-2"), Guard(2, "start-1"), Guard(0, "start-1"), Guard(1, "")])
async def test_another_epoch_or_incarnation_writes_nothing(table: StateTable, guard: Guard) -> None:
    sent = row()
    assert await table.flush([sent], guard, beat()) is None
    assert await table.read(sent.agent_id, "k") is None
    assert await table.heartbeats() == []


@pytest.mark.parametrize("change", ["end_epoch", "set_incarnation"])
async def test_a_flush_that_waited_for_the_change_writes_nothing(table: StateTable, db: Database, change: str) -> None:
    """F-inc. The flush's snapshot is older than the change; the row lock makes it look again (EvalPlanQual)."""
    sent = row()
    arguments = (1, "start-1") if change == "end_epoch" else (1, "start-1", "start-2")
    async with db.connection() as other:
        await other.execute("BEGIN")
        await other.execute(db.queries[change], *arguments)
        flush = asyncio.create_task(table.flush([sent], GUARD, beat()))
        await waits_for_a_lock(db, "applied AS")
        await other.execute("COMMIT")
        assert await flush is None
    assert await table.read(sent.agent_id, "k") is None
    assert await table.heartbeats() == []


async def test_a_flush_that_waited_for_a_change_that_never_came_writes(table: StateTable, db: Database) -> None:
    sent = row()
    async with db.connection() as other:
        await other.execute("BEGIN")
        await other.execute(db.queries["end_epoch"], 1, "start-1")
        flush = asyncio.create_task(table.flush([sent], GUARD, beat()))
        await waits_for_a_lock(db, "applied AS")
        await other.execute("ROLLBACK")
        assert await flush is not None
    assert await table.read(sent.agent_id, "k") == sent


async def test_an_epoch_change_waits_for_the_flush_before_it(table: StateTable, db: Database) -> None:
    """The row that the running flush commits is seen by the re-stamping of the new epoch."""
    sent = row(kv_time_us=NOW_US + 500)
    async with db.connection() as other:
        await other.execute("BEGIN")
        assert await table.flush([row()], GUARD, beat()) is not None
        assert (await other.fetchrow(db.queries["flush"], *_arguments(sent)))["applied"]
        new = NewEpoch(NOW_US + 400, STORE, "created-2", "start-2", "1/1", "test")
        change = asyncio.create_task(table.insert_epoch((1, "start-1"), new))
        await asyncio.sleep(0.1)
        assert not change.done()
        await other.execute("COMMIT")
        assert await change
    found = await table.read(sent.agent_id, "k")
    assert found == sent._replace(epoch=2)


def _arguments(sent: Row) -> tuple[Any, ...]:
    columns = ([sent.agent_id], sent.key, sent.value, f"{{{sent.version}}}", f"{{{sent.kv_time_us}}}", *[None] * 5)
    return (*GUARD, *columns, *beat(flusher_id="other"), None)


# --- the heartbeat ----------------------------------------------------------------------------------------


async def test_a_heartbeat_is_left_with_each_commit(table: StateTable) -> None:
    await table.flush([row(), row()], GUARD, beat(10, violations=1, stats='{"a": 1}'))
    await table.flush([row()], GUARD, beat(7))  # a redelivered batch: the high water stays
    (found,) = await table.heartbeats()
    assert (found.flusher_id, found.store_id, found.epoch) == ("f", STORE, 1)
    assert (found.high_water, found.kv_time_us) == (10, NOW_US + 10)
    assert (found.commits, found.rows, found.violations, found.stats) == (2, 3, 0, '{"a": 1}')
    assert 0 <= found.age_ms < 10_000
    await table.flush([row()], GUARD, beat(4, flusher_id="g"))
    assert await table.high_water(1) == (10, NOW_US + 10)
    assert await table.high_water(2) is None


async def test_the_high_water_begins_anew_with_an_epoch(table: StateTable) -> None:
    await table.flush([row()], GUARD, beat(1000))
    assert await table.insert_epoch((1, "start-1"), NewEpoch(NOW_US * 2, STORE, "c", "start-2", "1/1", "test"))
    await table.flush([row(epoch=2)], Guard(2, "start-2"), beat(3))
    assert await table.high_water(2) == (3, NOW_US + 3)


# --- what is refused --------------------------------------------------------------------------------------

POISON = {
    "NUL": '"\\u0000"',
    "lone surrogate": '"\\ud800"',
    "NaN": "NaN",
    "not JSON": "{",
    "huge number": "1e200000",
    "deep": "[" * 20_000 + "]" * 20_000,
    "control character": '"\x1f"',
    "surrogate in text": '"\ud800"',
}


@pytest.mark.parametrize("value", POISON.values(), ids=POISON.keys())
async def test_a_refused_value_refuses_its_batch_and_leaks_nothing(table: StateTable, value: str) -> None:
    good = row(value='"SECRET-OF-A-NEIGHBOUR"')
    bad = row(value=value.replace("{", '{"SECRET": '))
    with pytest.raises(DataRefused) as raised:
        await table.flush([good, bad], GUARD, beat())
    assert await table.read(good.agent_id, "k") is None
    assert await table.heartbeats() == []
    error: BaseException | None = raised.value
    while error is not None:
        assert "SECRET" not in str(error) + repr(error)
        assert "SECRET" not in str(getattr(error, "detail", "")) + str(getattr(error, "context", ""))
        error = error.__cause__ or error.__context__
    assert await flushed(table, good) == 1


async def test_a_key_that_is_too_long_is_refused_alone(table: StateTable) -> None:
    longest, longer = row(key="é" * 1000), row(key="é" * 1000 + "x")
    with pytest.raises(DataRefused):
        await table.flush([longest, longer], GUARD, beat())
    assert await flushed(table, longest) == 1


async def test_a_key_that_is_not_escaped_is_refused(table: StateTable) -> None:
    with pytest.raises(DataRefused):
        await table.flush([row(key="a\x1a|b"), row()], GUARD, beat())
    with pytest.raises(DataRefused):
        await table.flush([row(key="a\x00b"), row()], GUARD, beat())


async def test_two_rows_of_one_key_are_an_error_not_a_choice(table: StateTable) -> None:
    agent = uuid4()
    with pytest.raises(CenoteError, match="21000"):
        await table.flush([row(agent, version=1), row(agent, version=2)], GUARD, beat())


async def test_without_a_schema_the_way_out_is_named(pg: Any) -> None:
    empty = database(pg)
    with pytest.raises(SetupError, match="cenote migrate"):
        await StateTable(empty, empty.names).flush([row()], GUARD, beat())
    await empty.close()
