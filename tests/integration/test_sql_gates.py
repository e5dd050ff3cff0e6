"""Gates without a stopwatch: every query prepares at head schema, the hot ones use their key, WAL per flushed row."""

import random
import re
import string
from uuid import UUID, uuid4

import asyncpg
import pytest
from pg_server import GUARD, NOW_US, beat, db, pg, row, table, until

from cenote.sql.pool import Database
from cenote.sql.state import StateTable, prefix_end

__all__ = ["db", "pg", "table"]  # fixtures

BATCH = 500
KEYS = 20_000
WAL_BYTES_MAX = 470  # of these, 30 are for the log that the change feed reads
HOT_SHARE_MIN = 0.99


OF_A_NEAR_TABLE = re.compile(r"\{(near|index)\}")


async def test_every_query_prepares_at_head_schema(db: Database) -> None:
    async with db.connection() as con:
        for name, text in db.queries.items():
            if name.startswith("near_") and OF_A_NEAR_TABLE.search(text):
                continue  # that table is made at first use: test_knowledge_index.py runs them
            try:
                for statement in text.split(";\n") if name == "near_search_settings" else [text]:
                    await con.prepare(statement)
            except asyncpg.PostgresError as error:
                pytest.fail(f"{name}: {error}")


# --- plans ------------------------------------------------------------------------------------------------


async def _large(table: StateTable, db: Database) -> UUID:
    """Enough rows that reading the whole table would be the planner's mistake, and statistics to know it."""
    agents = [uuid4() for _ in range(20)]
    for agent in agents:
        rows = [row(agent, f"k{i:04}", i + 1) for i in range(BATCH)]
        assert await table.flush(rows, GUARD, beat()) is not None
    await table.register([(agent, str(agent)) for agent in agents])
    await db.execute(f"ANALYZE {db.names.schema('agents')}.state")
    return agents[0]


async def test_hot_queries_use_their_key_in_generic_plans_too(table: StateTable, db: Database) -> None:
    agent = await _large(table, db)
    hot: dict[str, tuple[object, ...]] = {
        "read": (agent, "k0007"),
        "read_many": (agent, ["k0007", "k0008"]),
        "page": (agent, "k0007", "k", prefix_end("k"), 100, True, None, 2**20),
        "versions": ([agent, agent], ["k0007", "k0008"]),
        "newer_than": (1, 5, agent, agent, "", 100, 2**20),
        "agents_page": (UUID(int=0), 10),
    }
    for mode in ("force_custom_plan", "force_generic_plan"):
        for name, arguments in hot.items():
            async with db.connection() as con, con.transaction():
                await con.execute(f"SET LOCAL plan_cache_mode = {mode}")
                plan = "\n".join(r[0] for r in await con.fetch(f"EXPLAIN {db.queries[name]}", *arguments))
            assert "state_pkey" in plan, (mode, name, plan)
            assert "Seq Scan on state" not in plan, (mode, name, plan)


async def test_a_page_reads_no_row_beyond_its_prefix(table: StateTable, db: Database) -> None:
    agent = await _large(table, db)
    async with db.connection() as con:
        arguments = (agent, "", "k001", prefix_end("k001"), 100, True, None, 2**20)
        plan = await con.fetch(f"EXPLAIN (ANALYZE, TIMING OFF, SUMMARY OFF) {db.queries['page']}", *arguments)
    scan = next(line[0] for line in plan if "state_pkey" in line[0])
    assert re.search(r"actual rows=10(\.00)? loops=1", scan), plan
    assert not [line[0] for line in plan if "Removed by Filter" in line[0]]


async def test_the_guard_is_taken_before_the_first_row(table: StateTable, db: Database) -> None:
    arguments = ([uuid4()], "k", "1", "{1}", "{1}", None, None, None, None, None)
    async with db.connection() as con:
        plan = await con.fetch(f"EXPLAIN {db.queries['flush']}", *GUARD, *arguments, *beat(), None)
    text = "\n".join(line[0] for line in plan)
    assert text.index("LockRows") < text.index("Insert on state")
    inserting = text[text.index("Insert on state") : text.index("Insert on flushers")]
    assert "One-Time Filter" in inserting, text
    assert "Conflict Arbiter Indexes: state_pkey" in inserting, text
    assert "Sort" not in inserting, text


# --- write-ahead log --------------------------------------------------------------------------------------


def _value(dice: random.Random) -> str:
    """200 bytes of JSON that share nothing with the last value: the worst case for WAL."""
    text = '{"data": "' + "".join(dice.choices(string.ascii_letters + string.digits, k=188)) + '"}'
    assert len(text) == 200
    return text


async def test_wal_per_hot_row(table: StateTable, db: Database) -> None:
    """Batches of random keys rewrite rows that exist: bytes of WAL per row, and HOT updates (I15: bounded cost)."""
    dice = random.Random(2)
    places = [(UUID(int=dice.getrandbits(128)), f"key-{i:05}") for i in range(KEYS)]
    version = 0

    async def flush(picked: list[tuple[UUID, str]]) -> None:
        nonlocal version
        version += 1
        rows = [row(*place, version, value=_value(dice), kv_time_us=NOW_US + version) for place in picked]
        outcome = await table.flush(rows, GUARD, beat(version))
        assert outcome is not None
        assert outcome.applied == BATCH

    for start in range(0, KEYS, BATCH):
        await flush(places[start : start + BATCH])
    schema = db.names.schema("agents")
    await db.execute(f"ALTER TABLE {schema}.state SET (autovacuum_enabled = off)")
    await db.execute(f"VACUUM {schema}.state")
    for _ in range(KEYS // BATCH):  # the first change of a page after a checkpoint logs it whole
        await flush(dice.sample(places, BATCH))
    hot_before = await _updates(db, (KEYS // BATCH) * BATCH)
    begin = await db.fetchval("SELECT pg_current_wal_insert_lsn()::text")
    for _ in range(40):
        await flush(dice.sample(places, BATCH))
    bytes_written = await db.fetchval("SELECT (pg_current_wal_insert_lsn() - $1::text::pg_lsn)::bigint", begin)
    hot_after = await _updates(db, hot_before[0] + 40 * BATCH)
    updates, hot = hot_after[0] - hot_before[0], hot_after[1] - hot_before[1]
    assert updates == 40 * BATCH
    assert hot / updates >= HOT_SHARE_MIN
    assert bytes_written / updates <= WAL_BYTES_MAX


async def _updates(db: Database, expected: int) -> tuple[int, int]:
    """(updates, HOT updates) of the state table, once each session has told its own."""
    query = """SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables
                WHERE relid = $1::text::regclass AND n_tup_upd >= $2"""
    state = f"{db.names.schema('agents')}.state"
    await until(lambda: db.fetchrow(query, state, expected))
    found = await db.fetchrow(query, state, expected)
    assert found is not None
    return found[0], found[1]


async def test_a_heartbeat_stays_hot(table: StateTable, db: Database) -> None:
    for n in range(200):
        await table.flush([row(version=n + 1)], GUARD, beat(n))
    query = """SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables
                WHERE relid = $1::text::regclass AND n_tup_upd >= 199"""
    flushers = f"{db.names.schema('agents')}.flushers"
    await until(lambda: db.fetchrow(query, flushers))
    found = await db.fetchrow(query, flushers)
    assert found is not None
    assert found[1] >= HOT_SHARE_MIN * found[0]
