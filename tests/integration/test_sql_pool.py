"""The pool: its five settings, every way it can fail, and that no failure outlives its cause."""

import asyncio
import signal
import time
from collections.abc import Iterator

import asyncpg
import pytest
from pg_server import PgServer, database, pg, running_server, until

from cenote.errors import (
    AlreadyExistsError,
    CenoteError,
    PoolTimeoutError,
    SetupError,
    TransactionError,
    UnavailableError,
)
from cenote.sql.errors import DataRefused
from cenote.sql.pool import Database

__all__ = ["pg"]  # fixtures


async def connections(pg: PgServer, db: Database) -> int:
    """Connections of this database's pool, as the server sees them."""
    con = await asyncpg.connect(pg.url())
    try:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
        return int(await con.fetchval(query, db.names.namespace))
    finally:
        await con.close()


def named(pg: PgServer, **sql: object) -> Database:
    """A pool whose connections can be told apart."""
    plain = database(pg, **sql)
    return Database(plain.config, plain.retry, plain.names, application_name=plain.names.namespace)


# --- the settings -----------------------------------------------------------------------------------------


async def test_it_opens_at_the_first_use_and_closes_for_good(pg: PgServer) -> None:
    db = named(pg, pool_min=2)
    assert await connections(pg, db) == 0
    assert db.server_version is None
    assert await db.fetchval("SELECT 1") == 1
    assert await connections(pg, db) == 2
    assert db.server_version is not None
    assert db.server_version[0] >= 15
    await db.close()
    assert await connections(pg, db) == 0
    with pytest.raises(SetupError, match="closed"):
        await db.fetchval("SELECT 1")
    await db.close()


async def test_closing_what_was_never_used_opens_nothing(pg: PgServer) -> None:
    db = named(pg)
    await db.close()
    assert await connections(pg, db) == 0


@pytest.mark.alone
async def test_no_more_than_pool_max_and_a_full_pool_says_so(pg: PgServer) -> None:
    db = named(pg, pool_min=0, pool_max=2, acquire_timeout_s=0.2)
    async with db.connection(), db.connection():
        with pytest.raises(PoolTimeoutError, match="pool_max"):
            await db.fetchval("SELECT 1")
        began = time.monotonic()
        with pytest.raises(PoolTimeoutError):
            await db.fetchval("SELECT 1", timeout_ms=20)
        assert time.monotonic() - began < 0.2
        assert await connections(pg, db) == 2
    assert await db.fetchval("SELECT 1") == 1
    await db.close()


async def test_idle_connections_go_down_to_pool_min(pg: PgServer) -> None:
    db = named(pg, pool_min=1, pool_max=4, idle_timeout_s=0.1)
    await asyncio.gather(*(db.fetchval("SELECT pg_sleep(0.05)") for _ in range(4)))

    async def only_the_floor_is_left() -> bool:
        return await connections(pg, db) == 1

    await until(only_the_floor_is_left)
    await db.close()


async def test_an_old_connection_is_replaced(pg: PgServer) -> None:
    db = named(pg, pool_min=0, pool_max=1, max_lifetime_s=0.2)
    pids = {await db.fetchval("SELECT pg_backend_pid()") for _ in range(3)}
    assert len(pids) == 1
    await asyncio.sleep(0.25)
    pids.add(await db.fetchval("SELECT pg_backend_pid()"))
    assert len(pids) == 2
    await db.close()


async def test_the_session_is_set_up_as_promised(pg: PgServer) -> None:
    db = named(pg)
    shown = {
        name: await db.fetchval("SELECT current_setting($1)", name)
        for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "TimeZone", "jit")
    }
    assert list(shown.values()) == ["10s", "1s", "30s", "UTC", "off"]
    assert int(await db.fetchval("SELECT current_setting('tcp_keepalives_idle')")) == 30
    await db.close()


async def test_an_identity_names_the_cluster_its_timeline_and_its_start(pg: PgServer) -> None:
    db = named(pg)
    identity = await db.identity()
    assert identity.system_identifier > 2**32
    assert identity.timeline == 1
    assert identity.started_us > 1_600_000_000_000_000
    assert str(identity) == f"{identity.system_identifier}/1/{identity.started_us}"
    assert await db.identity() == identity
    await db.close()


# --- errors -----------------------------------------------------------------------------------------------

ERRORS: list[tuple[str, type[CenoteError]]] = [
    ("40001", TransactionError), ("40P01", TransactionError), ("23505", AlreadyExistsError),
    ("42P01", SetupError), ("3F000", SetupError), ("42501", SetupError),
    ("22P02", DataRefused), ("22P05", DataRefused), ("22003", DataRefused), ("22021", DataRefused),
    ("54000", DataRefused), ("54001", DataRefused), ("23514", DataRefused),
    ("57P01", UnavailableError), ("57P02", UnavailableError), ("57P03", UnavailableError),
    ("53300", UnavailableError), ("08006", UnavailableError), ("55P03", TransactionError),
    ("57014", UnavailableError), ("25006", UnavailableError), ("XX000", CenoteError),
]  # fmt: skip


@pytest.mark.parametrize(("sqlstate", "kind"), ERRORS)
async def test_every_error_becomes_ours_without_details(pg: PgServer, sqlstate: str, kind: type[CenoteError]) -> None:
    db = named(pg, pool_min=0)
    raising = f"""DO $$ BEGIN
        RAISE EXCEPTION 'words' USING ERRCODE = '{sqlstate}', DETAIL = 'SECRET'; END $$"""
    with pytest.raises(CenoteError) as raised:
        await db.execute(raising)
    error = raised.value
    assert type(error) is kind
    assert isinstance(error.__cause__, asyncpg.PostgresError)
    assert error.tier == "RELATIONAL_DB"
    assert sqlstate in str(error)
    assert "SECRET" not in f"{error} {error.__cause__} {error.__cause__!r}"
    assert await db.fetchval("SELECT 1") == 1, "the pool goes on"
    await db.close()


async def test_a_demoted_primary_loses_all_its_connections(pg: PgServer) -> None:
    """25006: reads would go on for ever on a server that was demoted under its connections."""
    db = named(pg, pool_min=2)
    pids = {await db.fetchval("SELECT pg_backend_pid()") for _ in range(3)}
    async with db.connection() as con:
        pids.add(await con.fetchval("SELECT pg_backend_pid()"))
        await con.execute("SET default_transaction_read_only = on")
        with pytest.raises(UnavailableError, match="25006"):
            await db.execute("BEGIN READ ONLY; CREATE TABLE refused (x int)")
    after = {await db.fetchval("SELECT pg_backend_pid()") for _ in range(3)}
    assert not pids & after
    await db.close()


async def test_a_connection_is_at_hand_for_the_next_call(pg: PgServer) -> None:
    """Calls one after another never ask the pool; whoever counts sees nothing in use."""
    db = named(pg, pool_min=0, pool_max=3)
    first = await db.fetchval("SELECT pg_backend_pid()")
    pool, asked = db._pool, 0

    class Counted:
        def __getattr__(self, name: str) -> object:
            nonlocal asked
            asked += name in ("acquire", "release")
            return getattr(pool, name)

    db._pool = Counted()
    for _ in range(20):
        assert await db.fetchval("SELECT pg_backend_pid()") == first
        async with db.connection() as con:
            assert await con.fetchval("SELECT pg_backend_pid()") == first
            assert db.use()[:2] == (1, 1)
        assert db.use()[:2] == (0, 1)
    assert asked == 0
    with pytest.raises(CenoteError):
        await db.execute("SELECT 1/0")
    assert asked == 1, "what failed goes through the pool"
    await db.close()
    assert await connections(pg, db) == 0


async def test_what_is_at_hand_is_not_used_when_it_is_lost_or_expired(pg: PgServer) -> None:
    db = named(pg, pool_min=0, pool_max=2)
    async with db.connection() as held:
        old = await held.fetchval("SELECT pg_backend_pid()")
        at_hand = await db.fetchval("SELECT pg_backend_pid()")
        await db.expire()
        fresh = await db.fetchval("SELECT pg_backend_pid()")
        assert fresh not in (old, at_hand)
    async with db.connection() as one, db.connection() as other:
        pids = {await con.fetchval("SELECT pg_backend_pid()") for con in (one, other)}
        assert not pids & {old, at_hand}, "the one that was in use when all expired is replaced, too"
    stranger = named(pg, pool_min=0, pool_max=1)
    await stranger.fetch("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS t (pid)", list(pids))
    for pid in pids:
        await until(lambda pid=pid: _is_gone(stranger, pid), 5)

    async def another() -> bool:
        try:
            return await db.fetchval("SELECT pg_backend_pid()") not in pids
        except UnavailableError:
            return False  # this process has not heard yet that they are gone

    await until(another, 5)
    await stranger.close()
    await db.close()


async def _is_gone(db: Database, pid: int) -> bool:
    return not await db.fetchval("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid)


async def test_what_others_wait_for_is_not_kept(pg: PgServer) -> None:
    db = named(pg, pool_min=0, pool_max=2)
    assert sorted(await asyncio.gather(*(db.fetchval("SELECT $1::int", n) for n in range(50)))) == list(range(50))
    assert db.use()[:2] == (0, 2)
    assert await connections(pg, db) == 2
    await db.close()


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("postgresql://postgres:wrong@127.0.0.1:{port}/postgres", SetupError),
        ("postgresql://postgres:{password}@127.0.0.1:{port}/no_such_database", SetupError),
        ("postgresql://postgres:x@127.0.0.1:1/postgres", UnavailableError),
        ("postgresql://postgres:wrong@host:notaport/postgres", SetupError),
        ("mysql://postgres:wrong@host/postgres", SetupError),
    ],
    ids=["wrong password", "no such database", "nobody listens", "no port", "another scheme"],
)
async def test_a_bad_url_is_told_from_an_outage(pg: PgServer, url: str, kind: type[CenoteError]) -> None:
    db = database(pg, url=url.format(port=pg.port, password=pg.password))
    for _ in range(2):
        with pytest.raises(kind) as raised:
            await db.fetchval("SELECT 1")
        assert "wrong" not in str(raised.value)
    await db.close()


# --- cancellation -----------------------------------------------------------------------------------------


async def test_a_cancelled_call_does_not_poison_the_pool(pg: PgServer) -> None:
    db = named(pg, pool_min=0, pool_max=2)
    for n in range(12):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005 * (n % 4 + 1)):
                await asyncio.gather(*(db.fetchval("SELECT pg_sleep(5)") for _ in range(4)))
        assert await asyncio.gather(*(db.fetchval("SELECT $1::int", n) for _ in range(4))) == [n] * 4
    assert await connections(pg, db) <= 2
    await db.close()


async def test_a_call_with_a_deadline_ends_the_statement_too(pg: PgServer) -> None:
    db = named(pg, pool_min=0)
    with pytest.raises(UnavailableError, match="in time"):
        await db.execute("SELECT pg_sleep(30)", timeout_ms=50)
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(30)%' AND state = 'active'"

    async def nobody_sleeps() -> bool:
        return await db.fetchval(query) == 0

    await until(nobody_sleeps, 5)
    await db.close()


# --- a server that goes away ------------------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[PgServer]:
    """A server that this test may kill."""
    with running_server() as server:
        yield server


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
async def test_an_outage_is_unavailable_and_ends_by_itself(own: PgServer, how: signal.Signals) -> None:
    db = database(own, pool_min=2, pool_max=4)
    await asyncio.gather(*(db.fetchval("SELECT 1") for _ in range(4)))
    async with db.connection() as held:
        await held.execute("BEGIN")
        await asyncio.to_thread(own.stop, how)
        refused = 0
        for _ in range(6):
            with pytest.raises(UnavailableError):
                await db.fetchval("SELECT 1")
            refused += 1
        assert refused == 6
        await asyncio.to_thread(own.start)
    assert await asyncio.gather(*(db.fetchval("SELECT 1") for _ in range(8))) == [1] * 8
    await db.close()


async def test_an_outage_at_the_first_use_is_forgotten(own: PgServer) -> None:
    db = database(own)
    await asyncio.to_thread(own.stop)
    with pytest.raises(UnavailableError):
        await db.fetchval("SELECT 1")
    await asyncio.to_thread(own.start)
    assert await db.fetchval("SELECT 1") == 1
    await db.close()


async def test_a_frozen_server_does_not_hold_a_call_for_ever(own: PgServer) -> None:
    db = database(own, pool_min=0)
    pid = await db.fetchval("SELECT pg_backend_pid()")
    own.signal(pid, signal.SIGSTOP)
    own.freeze()
    began = time.monotonic()
    try:
        with pytest.raises(UnavailableError):
            await db.fetchval("SELECT 1", timeout_ms=300)
        assert time.monotonic() - began < 10
    finally:
        own.thaw()
        own.signal(pid, signal.SIGCONT)

    async def answers() -> bool:
        return await db.fetchval("SELECT 1") == 1

    await until(answers)
    await db.close()
