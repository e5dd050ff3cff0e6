"""Transactions as functions: run again when PostgreSQL asks for it, rolled back otherwise, never half known."""

import asyncio
import contextlib
import time

import pytest
from pg_server import PgServer, database, db, pg

from cenote.errors import AlreadyExistsError, OutcomeUnknownError, TransactionError, UnavailableError
from cenote.sql.errors import DataRefused
from cenote.sql.pool import Database
from cenote.sql.transaction import Isolation, Transaction, transact

__all__ = ["db", "pg"]  # fixtures


@pytest.fixture
async def accounts(db: Database) -> str:
    """A table of two accounts."""
    name = f"{db.names.schema('agents')}.accounts"
    await db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, amount int NOT NULL CHECK (amount < 1000000))")
    await db.execute(f"INSERT INTO {name} VALUES (1, 100), (2, 100)")
    return name


async def _amounts(db: Database, accounts: str) -> list[int]:
    return [r["amount"] for r in await db.fetch(f"SELECT amount FROM {accounts} ORDER BY id")]


async def test_a_function_commits_and_gives_its_result(db: Database, accounts: str) -> None:
    async def double(tx: Transaction) -> int:
        assert await tx.execute(f"UPDATE {accounts} SET amount = amount * 2") == "UPDATE 2"
        await tx.executemany(f"INSERT INTO {accounts} VALUES ($1, $2)", [(3, 1), (4, 2)])
        found = await tx.fetchrow(f"SELECT sum(amount) FROM {accounts}")
        assert found is not None
        return int(found[0])

    assert await transact(db, double) == 403
    assert await _amounts(db, accounts) == [200, 200, 1, 2]


@pytest.mark.parametrize("isolation", [Isolation.REPEATABLE_READ, Isolation.SERIALIZABLE])
async def test_lost_updates_cannot_happen_and_all_get_through(
    db: Database, accounts: str, isolation: Isolation
) -> None:
    runs = 0

    async def increment(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        amount = await tx.fetchval(f"SELECT amount FROM {accounts} WHERE id = 1")
        await asyncio.sleep(0.002)
        await tx.execute(f"UPDATE {accounts} SET amount = $1 WHERE id = 1", amount + 1)

    await asyncio.gather(*(transact(db, increment, isolation=isolation) for _ in range(12)))
    assert await _amounts(db, accounts) == [112, 100]
    assert runs > 12, "nothing was ever run again"


async def test_write_skew_is_refused_where_it_is_asked_for(db: Database, accounts: str) -> None:
    both = asyncio.Barrier(2)
    runs = 0

    async def withdraw(tx: Transaction, account: int) -> bool:
        nonlocal runs
        runs += 1
        total = await tx.fetchval(f"SELECT sum(amount) FROM {accounts}")
        if runs <= 2:
            await both.wait()
        if total < 200:
            return False
        await tx.execute(f"UPDATE {accounts} SET amount = amount - 150 WHERE id = $1", account)
        return True

    results = await asyncio.gather(
        transact(db, lambda tx: withdraw(tx, 1), isolation=Isolation.SERIALIZABLE),
        transact(db, lambda tx: withdraw(tx, 2), isolation=Isolation.SERIALIZABLE),
    )
    assert sorted(results) == [False, True]
    assert runs == 3


async def test_a_deadlock_is_run_again(db: Database, accounts: str) -> None:
    both = asyncio.Barrier(2)
    runs = 0

    async def cross(tx: Transaction, first: int, second: int) -> None:
        nonlocal runs
        runs += 1
        await tx.execute(f"UPDATE {accounts} SET amount = amount + 1 WHERE id = $1", first)
        if runs <= 2:
            await both.wait()
        await tx.execute(f"UPDATE {accounts} SET amount = amount + 1 WHERE id = $1", second)

    await asyncio.gather(
        transact(db, lambda tx: cross(tx, 1, 2), isolation=Isolation.READ_COMMITTED),
        transact(db, lambda tx: cross(tx, 2, 1), isolation=Isolation.READ_COMMITTED),
    )
    assert runs > 2
    assert await _amounts(db, accounts) == [102, 102]


async def test_the_isolation_is_the_one_asked_for(db: Database) -> None:
    for isolation in Isolation:
        shown = await transact(db, lambda tx: tx.fetchval("SHOW transaction_isolation"), isolation=isolation)
        assert shown == isolation.value.lower()


class Mine(OSError):
    """An error of the function's own, of a kind that a lost connection has, too."""


@pytest.mark.parametrize("error", [Mine("mine"), ValueError("mine"), TimeoutError(), KeyboardInterrupt()])
async def test_errors_of_its_own_roll_back_and_come_out_as_they_are(
    db: Database, accounts: str, error: BaseException
) -> None:
    runs = 0

    async def failing(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.execute(f"DELETE FROM {accounts}")
        raise error

    with pytest.raises(type(error)) as raised:
        await transact(db, failing)
    assert raised.value is error
    assert runs == 1
    assert await _amounts(db, accounts) == [100, 100]


async def test_errors_of_postgresql_come_out_as_ours_and_are_not_run_again(db: Database, accounts: str) -> None:
    with pytest.raises(AlreadyExistsError):
        await transact(db, lambda tx: tx.execute(f"INSERT INTO {accounts} VALUES (1, 1)"))
    with pytest.raises(DataRefused):
        await transact(db, lambda tx: tx.execute(f"INSERT INTO {accounts} VALUES (9, 1000000)"))


async def test_a_swallowed_error_is_not_a_commit(db: Database, accounts: str) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with a rollback, and calls that a success."""

    async def careless(tx: Transaction) -> str:
        await tx.execute(f"DELETE FROM {accounts}")
        with contextlib.suppress(AlreadyExistsError):
            await tx.execute(f"INSERT INTO {accounts} VALUES (1, 1), (1, 1)")
        return "done"

    with pytest.raises(AlreadyExistsError):
        await transact(db, careless)
    assert await _amounts(db, accounts) == [100, 100]


async def test_a_spent_deadline_tells_how_hard_it_was_tried(db: Database) -> None:
    async def hopeless(tx: Transaction) -> None:
        await tx.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")

    began = time.monotonic()
    with pytest.raises(TransactionError, match="40001") as raised:
        await transact(db, hopeless, deadline_ms=300)
    assert time.monotonic() - began < 5
    assert raised.value.attempts is not None
    assert raised.value.attempts > 2
    assert raised.value.elapsed_ms is not None
    assert raised.value.elapsed_ms < 5000


async def test_a_connection_lost_during_commit_is_an_unknown_outcome(db: Database, accounts: str) -> None:
    """A deferred trigger makes the backend end itself inside COMMIT."""
    schema = db.names.schema("agents")
    await db.execute(f"""
        CREATE FUNCTION {schema}.die() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER die AFTER INSERT ON {accounts} DEFERRABLE INITIALLY DEFERRED
          FOR EACH ROW EXECUTE FUNCTION {schema}.die()""")
    with pytest.raises(OutcomeUnknownError):
        await transact(db, lambda tx: tx.execute(f"INSERT INTO {accounts} VALUES (3, 3)"))
    assert len(await _amounts(db, accounts)) == 2


async def test_a_connection_lost_earlier_wrote_nothing(db: Database, accounts: str) -> None:
    async def cut(tx: Transaction) -> None:
        await tx.execute(f"DELETE FROM {accounts}")
        pid = await tx.fetchval("SELECT pg_backend_pid()")
        await db.execute("SELECT pg_terminate_backend($1, 5000)", pid)
        await tx.execute("SELECT 1")

    with pytest.raises(UnavailableError):
        await transact(db, cut)
    assert await _amounts(db, accounts) == [100, 100]


async def test_a_session_left_in_disorder_is_put_right(pg: PgServer) -> None:
    one = database(pg, pool_min=0, pool_max=1)

    async def disorder(tx: Transaction) -> int:
        await tx.execute("SET work_mem = '77MB'; CREATE TEMP TABLE left_behind (x int); LISTEN somewhere")
        await tx.fetchval("SELECT pg_advisory_lock(4711)")
        return int(await tx.fetchval("SELECT pg_backend_pid()"))

    pid = await transact(one, disorder)
    assert await one.fetchval("SELECT pg_backend_pid()") == pid
    assert await one.fetchval("SHOW work_mem") != "77MB"
    assert await one.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = $1", pid) == 0
    await one.close()


async def test_a_cancelled_transaction_rolls_back_and_frees_its_connection(db: Database, accounts: str) -> None:
    async def slow(tx: Transaction) -> None:
        await tx.execute(f"DELETE FROM {accounts}")
        await tx.execute("SELECT pg_sleep(30)")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await transact(db, slow)
    assert await _amounts(db, accounts) == [100, 100]
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    assert await db.fetchval(query) == 0
