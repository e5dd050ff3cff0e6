"""`store.transact`: exactly once, whatever happens to the connection, and what stands in its way is told."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest

import cenote
from cenote import Isolation, Transaction
from cenote.model.uuid7 import uuid7
from cenote.retry import Backoff
from cenote.sql import operations
from cenote.sql.pool import Database
from cenote.sql.transaction import CommitLost, transact
from cenote.testing import FaultProxy, TestServers

__all__ = ["db", "pg"]  # fixtures
from pg_server import PgServer, db, pg

from witness import Violation, demand


@pytest.fixture
async def table(cenote_store: cenote.Store) -> str:
    name = f"{cenote_store.config.names.schema('agents')}.amounts"
    await _run(cenote_store, f"CREATE TABLE {name} (id int PRIMARY KEY, n int NOT NULL)")
    await _run(cenote_store, f"INSERT INTO {name} VALUES (1, 0), (2, 0)")
    return name


@pytest.fixture
async def behind(cenote_servers: TestServers) -> AsyncIterator[tuple[FaultProxy, cenote.Store]]:
    """A store whose PostgreSQL is reached through a proxy; its pool has one connection, so every fault hits."""
    port = urlsplit(cenote_servers.sql_dsn).port
    assert port is not None
    async with FaultProxy(port) as proxy:
        given = cenote_servers.by_url(sql_port=proxy.port, sql__pool_min=1, sql__pool_max=1, flush__enabled=False)
        async with cenote.open(**given) as store:
            yield proxy, store


async def _run(store: cenote.Store, query: str) -> None:
    async def run(tx: Transaction) -> None:
        await tx.execute(query)

    await store.transact(run)


async def _sum(store: cenote.Store, table: str) -> int:
    return int(await store.transact(lambda tx: tx.fetchval(f"SELECT sum(n) FROM {table}")))


async def test_a_savepoint_undoes_what_fails_inside(cenote_store: cenote.Store, table: str) -> None:
    told: list[str] = []

    async def work(tx: Transaction) -> str:
        await tx.execute(f"UPDATE {table} SET n = 10 WHERE id = 1")
        for number in (3, 2, 4):
            try:
                async with tx.savepoint():
                    tx.after_commit.append(lambda number=number: told.append(str(number)))  # type: ignore[misc]  # mypy: lambda
                    await tx.execute(f"INSERT INTO {table} VALUES ($1, 1)", number)
            except cenote.AlreadyExistsError as error:
                told.append(error.code)
        async with tx.savepoint(), tx.savepoint():
            await tx.execute(f"UPDATE {table} SET n = n + 1 WHERE id = 4")
        return "done"

    assert await cenote_store.transact(work) == "done"
    assert await _sum(cenote_store, table) == 10 + 0 + 1 + 2
    assert told == ["DUPLICATE_KEY", "3", "4"]


async def test_statements_of_one_transaction_wait_for_each_other(cenote_store: cenote.Store) -> None:
    async def work(tx: Transaction) -> list[int]:
        return list(await asyncio.gather(*(tx.fetchval(f"SELECT {n} FROM pg_sleep(0.001)") for n in range(8))))

    assert await cenote_store.transact(work) == list(range(8))


async def test_what_cannot_be_meant_is_refused(cenote_store: cenote.Store) -> None:
    async def inner(tx: Transaction) -> None: ...

    async def outer(tx: Transaction) -> None:
        await cenote_store.transact(inner)

    with pytest.raises(cenote.RejectedError, match="inside a transaction"):
        await cenote_store.transact(outer)
    with pytest.raises(cenote.RejectedError, match="isolation"):
        await cenote_store.transact(inner, isolation="SERIALIZABLE")  # type: ignore[arg-type]  # that is it
    await cenote_store.transact(inner)  # the refusal has not left anything behind


async def _increment_with_a_lost_answer(behind: tuple[FaultProxy, cenote.Store]) -> None:
    """The answer to COMMIT never comes; PostgreSQL has committed, or has not: the increment happens once."""
    proxy, store = behind
    table = f"{store.config.names.schema('agents')}.amounts_{proxy.port}_{id(proxy)}_{proxy.lost}"
    await _run(store, f"CREATE TABLE {table} (id int PRIMARY KEY, n int NOT NULL)")
    await _run(store, f"INSERT INTO {table} VALUES (1, 0)")
    lost, runs = proxy.lost, 0

    async def increment(tx: Transaction) -> int:
        nonlocal runs
        runs += 1
        return int(await tx.fetchval(f"UPDATE {table} SET n = n + 1 WHERE id = 1 RETURNING n"))

    proxy.lose_answer_to(b"COMMIT")
    result = await store.transact(increment)
    assert proxy.lost == lost + 1, "the fault did not hit"
    found = await _sum(store, table)
    demand(found == 1, f"one increment made {found}, after {runs} runs that said {result}")
    assert (result, runs) == (1, 1)


async def test_s12_an_increment_whose_answer_was_lost_happens_once(
    behind: tuple[FaultProxy, cenote.Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    await _increment_with_a_lost_answer(behind)

    async def unknown(*_: object) -> bool:
        return False  # as whoever runs it again after a lost answer

    monkeypatch.setattr(operations, "_happened", unknown)
    with pytest.raises(Violation, match="one increment made 2"):
        await _increment_with_a_lost_answer(behind)


async def test_an_answer_lost_before_commit_means_that_it_is_run_again(
    behind: tuple[FaultProxy, cenote.Store],
) -> None:
    proxy, store = behind
    table = f"{store.config.names.schema('agents')}.before"
    await _run(store, f"CREATE TABLE {table} (n int)")
    runs = 0

    async def insert(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.execute(f"INSERT INTO {table} VALUES (1)")

    proxy.lose_answer_to(b"INSERT INTO")
    await store.transact(insert)
    assert runs == 2
    assert await store.transact(lambda tx: tx.fetchval(f"SELECT count(*) FROM {table}")) == 1


async def test_an_answer_that_stays_unknown_is_told_as_such(behind: tuple[FaultProxy, cenote.Store]) -> None:
    """PostgreSQL is away until the deadline: nobody knows, and the error says so; nothing happens twice."""
    proxy, store = behind
    table = f"{store.config.names.schema('agents')}.away"
    await _run(store, f"CREATE TABLE {table} (n int)")

    async def insert(tx: Transaction) -> None:
        await tx.execute(f"INSERT INTO {table} VALUES (1)")
        tx.before_commit.append(cut)

    async def cut() -> None:
        proxy.lose_answer_to(b"COMMIT")
        proxy._refusing = True  # whoever comes again is turned away; what is under way goes on

    with pytest.raises(cenote.OutcomeUnknownError, match="COMMIT"):
        await store.transact(insert, deadline=1)
    proxy.heal()
    assert await store.transact(lambda tx: tx.fetchval(f"SELECT count(*) FROM {table}")) == 1


async def _turn(con: asyncpg.Connection, read_only: bool) -> None:
    await con.execute("SET default_transaction_read_only = off")  # or it could not turn the others back
    await con.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if read_only else 'off'}")
    await con.execute("SELECT pg_reload_conf()")


async def test_25006_a_server_that_is_read_only_for_a_while_is_waited_for(pg: PgServer, db: Database) -> None:
    """Live sessions turn read-only under the pool, and new ones are no better until the server is itself again."""
    table = f"{db.names.schema('agents')}.demoted"
    await db.execute(f"CREATE TABLE {table} (n int)")
    con = await asyncpg.connect(pg.url())
    refused = 0

    async def insert(tx: Transaction) -> None:
        nonlocal refused
        try:
            await tx.execute(f"INSERT INTO {table} VALUES (1)")
        except cenote.UnavailableError as error:
            refused += "25006" in str(error)
            raise

    await _turn(con, True)
    try:
        while await db.fetchval("SHOW default_transaction_read_only") != "on":
            await asyncio.sleep(0.01)
        work = asyncio.create_task(operations.transact_once(db, insert, Isolation.REPEATABLE_READ, 15_000))
        while not refused:
            await asyncio.sleep(0.01)
        assert not work.done()
    finally:
        await _turn(con, False)
    await work
    assert await con.fetchval(f"SELECT count(*) FROM {table}") == 1
    await con.close()


@pytest.mark.parametrize("commits", [True, False])
async def test_whoever_lost_the_answer_waits_for_the_transaction_itself(db: Database, commits: bool) -> None:
    """It may still be under way. If it ends without a commit, its id can never be committed any more."""
    operation, left, leave = uuid7(), asyncio.Event(), asyncio.Event()

    async def original(tx: Transaction) -> None:
        await tx.execute("SELECT pg_current_xact_id()")
        await tx.execute(db.queries["leave_operation"], operation)
        left.set()
        await leave.wait()
        if not commits:
            raise ZeroDivisionError

    first = asyncio.create_task(transact(db, original))
    await left.wait()
    backoff = Backoff(db.retry, 15_000)
    asked = asyncio.create_task(operations._happened(db, operation, backoff, CommitLost("lost")))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%operations%'"
    while not await db.fetchval(waiting):
        await asyncio.sleep(0.01)
    assert not asked.done()
    leave.set()
    assert await asked is commits
    if commits:
        await first
    else:
        with pytest.raises(ZeroDivisionError):
            await first
        with pytest.raises(cenote.AlreadyExistsError):
            await transact(db, original)


async def test_a_spent_deadline_and_a_full_pool_are_told_apart(cenote_servers: TestServers) -> None:
    given = cenote_servers.fresh(flush__enabled=False, sql__pool_min=1, sql__pool_max=1, sql__acquire_timeout_s=0.2)
    async with cenote.open(**given) as store:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def hold(tx: Transaction) -> None:
            entered.set()
            await leave.wait()

        async def again(tx: Transaction) -> None:
            await tx.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")

        holder = asyncio.create_task(store.transact(hold))
        await entered.wait()
        with pytest.raises(cenote.PoolTimeoutError):
            await store.transact(again)
        leave.set()
        await holder
        with pytest.raises(cenote.CenoteError) as caught:
            await store.transact(again, isolation=Isolation.READ_COMMITTED, deadline=0.2)
        assert caught.value.code == "SERIALIZATION_ERROR"
        assert (caught.value.attempts or 0) > 1
