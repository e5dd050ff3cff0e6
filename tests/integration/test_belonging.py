"""One stream, one database: whatever else is brought together is refused before anything is written (I1, I13; flow
rule 8), also when it happens under way, and `cenote adopt` is the way out."""

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cli_run import Cli
from kv_server import USER, KvServer, config, running

import cenote
from cenote.embedded.postgres_server import ROLE, SUPERUSER
from cenote.embedded.state import DataDir
from cenote.engine import belonging
from cenote.errors import SetupError
from cenote.kv.link import Link
from cenote.kv.stream import StateStream
from cenote.sql import epochs
from cenote.sql.pool import Database
from cenote.testing import TestServers
from witness import another, demand, eventually, evict_all, reached, toothed

_numbers = itertools.count(1)
QUICK = {"kv__deadline_ms": 3000, "kv__request_timeout_ms": 3000}


@dataclass
class Two:
    """Two NATS and one namespace on one PostgreSQL."""

    first: KvServer
    second: KvServer
    sql: str
    namespace: str

    def at(self, server: KvServer, **changes: Any) -> dict[str, Any]:
        """Arguments for `cenote.open()`."""
        return {
            "kv": server.url, "kv__user": USER, "kv__password": server.password, "sql": self.sql,
            "sql__migrate": "auto", "namespace": self.namespace, "flush__drain_ms": 2000, **QUICK, **changes,
        }  # fmt: skip

    def cli(self, capture: pytest.CaptureFixture[str], server: KvServer, sql: str = "") -> Cli:
        kv = server.url.replace("//", f"//{USER}:{server.password}@")
        return Cli(capture, ["--kv", kv, "--sql", sql or self.sql, "--namespace", self.namespace])


@pytest.fixture
def two(cenote_servers: TestServers, tmp_path: Path) -> Iterator[Two]:
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
    with running(places[0]) as first, running(places[1]) as second:
        yield Two(first, second, cenote_servers.sql_dsn, cenote_servers.fresh()["namespace"])


@asynccontextmanager
async def another_database(servers: TestServers) -> AsyncIterator[str]:
    """The URL of an empty database of the same role."""
    state = DataDir(servers.data_dir).load()
    assert state is not None
    name = f"other_{next(_numbers)}"
    link = await asyncpg.connect(
        host="127.0.0.1",
        port=state.postgres_port,
        user=SUPERUSER,
        password=state.superuser_password,
        database="postgres",
    )
    try:
        await link.execute(f"CREATE DATABASE {name} OWNER {ROLE}")
        yield servers.sql_dsn.replace("/cenote?", f"/{name}?")
        await link.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await link.close()


async def messages(server: KvServer) -> dict[str, int]:
    """Streams of a NATS, each with the number of messages it ever took."""
    link = Link(config(server), name="count")
    await link.connect()
    names = (await link.api("STREAM.NAMES")).get("streams") or []
    counts = {name: (await link.api(f"STREAM.INFO.{name}"))["state"]["last_seq"] for name in names}
    await link.close()
    return counts


async def contents(sql: str, namespace: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of a namespace."""
    link = await asyncpg.connect(sql)
    try:
        found = await link.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", f"{namespace}_agents")
        return {
            name: sorted(tuple(map(str, row)) for row in await link.fetch(f'SELECT * FROM "{namespace}_agents".{name}'))
            for (name,) in found
        }
    finally:
        await link.close()


async def counted(two: "Two", server: KvServer, sql: str) -> tuple[Any, Any]:
    """Everything that a refused opening could have written to."""
    return await messages(server), await contents(sql, two.namespace)


async def age_heartbeats(two: "Two") -> None:
    """As if an hour had gone by since the last flush."""
    link = await asyncpg.connect(two.sql)
    await link.execute(f"UPDATE \"{two.namespace}_agents\".flushers SET committed_at = now() - interval '1 hour'")
    await link.close()


async def error_of(work: Awaitable[object]) -> SetupError | None:
    """What it is refused with, if it is."""
    try:
        await work
    except SetupError as error:
        return error
    return None


async def open_and_close(settings: dict[str, Any], value: str | None = None) -> None:
    """Open a store, and put a value into it if there is one."""
    async with cenote.open(**settings) as store:
        if value is not None:
            await store.agent("one").put("k", value, durability="sql")


async def refusal(settings: dict[str, Any]) -> SetupError:
    """What opening is refused with."""
    with pytest.raises(SetupError) as refused:
        await open_and_close(settings)
    assert "cenote adopt" in str(refused.value.hint)
    return refused.value


# --- two NATS before one database -----------------------------------------------------------------------


def knowing_another_nats(patch: pytest.MonkeyPatch) -> None:
    """Whoever comes with a new stream is taken for the same NATS with a recreated bucket."""
    patch.setattr(epochs, "refused", lambda claim, newest, home: False)
    patch.setattr(belonging, "refused", lambda claim, newest, home: False)


@toothed(knowing_another_nats)
async def test_i1_another_nats_while_the_flusher_of_the_first_lives(two: Two) -> None:
    """It would end the epoch of the first, whose writes would be acknowledged, fenced out, and evicted."""
    async with cenote.open(**two.at(two.first)) as store:
        agent = store.agent("one")
        await agent.put("k", "first", durability="sql")
        before = await counted(two, two.second, two.sql)
        refused = await error_of(open_and_close(two.at(two.second)))
        if refused is not None:
            assert store._core.epochs.store_id in str(refused)
            assert await counted(two, two.second, two.sql) == before, "something was written"
        receipt = await agent.put("k", "acked")
        try:
            await receipt.durable(1)
        except cenote.CenoteError as error:
            demand(False, f"I1: an acked write never reaches SQL: {error}")
        assert (await store.stats()).epoch == 1


@pytest.mark.judge
@toothed(knowing_another_nats)
async def test_i1_another_nats_long_after_the_first_was_closed(two: Two) -> None:
    async with cenote.open(**two.at(two.first, flush__enabled=False, flush__drain_ms=0)) as store:
        store_id = store._core.epochs.store_id
        await store.agent("one").put("k", "acked, not flushed")
    before = await counted(two, two.second, two.sql)
    refused = await error_of(open_and_close(two.at(two.second), "of another NATS"))
    if refused is not None:
        assert store_id in str(refused)
        assert "no store" in str(refused)
        assert "cenote adopt" in str(refused.hint)
        assert await counted(two, two.second, two.sql) == before, "something was written"
    async with cenote.open(**two.at(two.first)) as again:
        with contextlib.suppress(cenote.NotDurableError):
            await again.flush(1)
        found = await contents(two.sql, two.namespace)
        demand([row for row in found["state"] if "acked, not flushed" in str(row)], "I1: an acked write was fenced out")


@pytest.mark.parametrize("lost", ["the state bucket", "the state bucket, and a restart"])
async def test_a_bucket_recreated_on_the_same_nats_is_a_new_epoch_at_once(two: Two, lost: str) -> None:
    async with cenote.open(**two.at(two.first)) as store:
        await store.agent("one").put("k", 1, durability="sql")
        stream = store._core.stream.name
    link = Link(config(two.first), name="vandal")
    await link.connect()
    await link.api(f"STREAM.DELETE.{stream}")
    await link.close()
    if "restart" in lost:
        two.first.stop()
        two.first.start()
    async with cenote.open(**two.at(two.first)) as store:
        assert await store.agent("one").get("k") == 1
        await store.agent("one").put("k", 2, durability="sql")
        assert (await store.stats()).epoch == 2


@pytest.mark.judge
async def test_a_nats_that_lost_everything_is_adopted(two: Two, capsys: pytest.CaptureFixture[str]) -> None:
    async with cenote.open(**two.at(two.first)) as store:
        await store.agent("one").put("k", 1, durability="sql")
        store_id = store._core.epochs.store_id
    cli = two.cli(capsys, two.second)
    assert store_id in str(await refusal(two.at(two.second)))
    before = await counted(two, two.second, two.sql)
    dry = await asyncio.to_thread(cli, "adopt", "--dry-run", "--json")
    assert (dry.code, dry.json["adopted"]) == (0, None)
    assert (dry.json["sides"]["sql_store"], dry.json["sides"]["nats_store"]) == (store_id, "")
    assert (dry.json["sides"]["sql_rows"], dry.json["sides"]["nats_entries"]) == (1, 0)
    early = await asyncio.to_thread(cli, "adopt", "--yes")
    assert early.code == 2, "a flusher wrote to it a moment ago"
    assert "stop every process" in early.err
    unsaid = await asyncio.to_thread(cli, "adopt", "--json")
    assert unsaid.code == 64
    assert await counted(two, two.second, two.sql) == before, "something was written"
    await age_heartbeats(two)
    done = await asyncio.to_thread(cli, "adopt", "--yes", "--json")
    assert done.code == 0, done.err
    assert done.json["adopted"]["epoch"] == 2
    again = await asyncio.to_thread(cli, "adopt")
    assert again.code == 0
    assert "nothing to adopt" in again.out
    async with cenote.open(**two.at(two.second)) as store:
        assert await store.agent("one").get("k") == 1
        await store.agent("one").put("k", 2, durability="sql")
        assert (await store.stats()).epoch == 2
    old = await refusal(two.at(two.first))
    assert store_id in str(old)
    assert done.json["adopted"]["store_id"] in str(old)


# --- a stream and a database of two stores --------------------------------------------------------------


async def test_a_stream_of_one_store_before_the_database_of_another(
    two: Two, cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused; adopted, NATS wins, what it replaces is kept, and what only SQL has stays."""
    async with another_database(cenote_servers) as elsewhere:
        ids = []
        async with cenote.open(**two.at(two.first)) as store:
            ids.append(store._core.epochs.store_id)
            for key, value in (("both", "old"), ("same", {"a": 1, "b": [2]}), ("only sql", 7), ("dead", "alive")):
                await store.agent("one").put(key, value)
            for number in range(30):
                await store.agent("one").put("both", f"of the database {number}")
            for name, total in (("both", 100), ("only sql", 7)):
                await store.counter(name).add(total)
            await store.flush(10)
        async with cenote.open(**two.at(two.second, sql=elsewhere)) as store:
            ids.append(store._core.epochs.store_id)
            agent = store.agent("one")
            await agent.put("both", "of the stream")
            await agent.put("same", {"b": [2], "a": 1})
            await agent.put("dead", "dying")
            await agent.put("only kv", 8)
            await agent.put("copy", 9)
            for name, total in (("both", 3), ("only kv", 4)):
                await store.counter(name).add(total)
            await store.flush(10)
            await evict_all(store)
            await agent.hydrate()
            await agent.put("both", "of the stream, unflushed")
            await agent.delete("dead")
        before = await counted(two, two.second, two.sql)
        refused = await refusal(two.at(two.second))
        assert all(one in str(refused) for one in ids)
        assert await counted(two, two.second, two.sql) == before, "something was written"
        await age_heartbeats(two)
        cli = two.cli(capsys, two.second)
        done = await asyncio.to_thread(cli, "adopt", "--yes", "--json")
        assert done.code == 0, done.err
        assert done.json["adopted"]["entries"] == 5
        assert done.json["adopted"]["replaced"] == 2, "the differing value, and the one that a tombstone replaces"
        async with cenote.open(**two.at(two.second)) as store:
            expected = {"both": "of the stream, unflushed", "same": {"a": 1, "b": [2]}, "only sql": 7, "only kv": 8}
            await store.flush(10)
            await evict_all(store)
            async with another(store) as fresh:
                held = {key: value async for key, value in fresh.agent("one").items()}
                assert held == expected | {"copy": 9}
            counters = {name: total async for name, total in store.counters()}
            assert counters == {"both": 3, "only sql": 7, "only kv": 4}
            letters = await store._core.table.dead_letters(0, 10)
            kept = {letter.key: letter.raw for letter in letters}
            assert kept == {"both": b'"of the database 29"', "dead": b'"alive"'}
        assert ids[1] in str(await refusal(two.at(two.second, sql=elsewhere)))


def asking_each_connection(patch: pytest.MonkeyPatch) -> None:
    """A process that never flushes believes whatever database it reads."""

    async def believe(self: Database, con: object) -> None:
        pass

    patch.setattr(Database, "_must_be_ours", believe)


@pytest.mark.judge
@toothed(asking_each_connection)
async def test_i1_one_stream_with_two_databases(
    two: Two, cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flusher is refused at opening; a reader, which opens no connection before it must, at its first read."""
    async with another_database(cenote_servers) as elsewhere, cenote.open(**two.at(two.first)) as store:
        await store.agent("one").put("k", 1, durability="sql")
        before = await counted(two, two.first, elsewhere)
        refused = await refusal(two.at(two.first, sql=elsewhere))
        assert store._core.epochs.store_id in str(refused)
        assert (await counted(two, two.first, elsewhere))[1] == before[1] == {}, "the other database was written to"
        migrated = await asyncio.to_thread(two.cli(capsys, two.first, elsewhere), "migrate")
        assert migrated.code == 0, migrated.err
        await store.flush(10)
        await evict_all(store)
        async with cenote.open(
            **two.at(two.first, sql=elsewhere, sql__migrate="check", flush__enabled=False)
        ) as reader:
            told = await error_of(reader.agent("one").get("k"))
            demand(told is not None, "I1: an evicted value is read from another store's database: it is not there")
            assert "cenote adopt" in str(told and told.hint)
        await store.agent("one").put("k", 2, durability="sql")


# --- under way ------------------------------------------------------------------------------------------


def trusting_whoever_answers(patch: pytest.MonkeyPatch) -> None:
    """After a reconnect the stream at that address is believed to be ours."""
    patch.setattr(StateStream, "demand_ours", lambda self: None)
    patch.setattr(StateStream, "ours", property(lambda self: True))
    patch.setattr(belonging, "_adopted", do_nothing)


async def do_nothing(*_: object) -> None:
    pass


@toothed(trusting_whoever_answers)
async def test_i1_a_reconnect_to_another_nats_is_noticed_before_a_write(two: Two, cenote_servers: TestServers) -> None:
    """The address of our NATS leads to another store's: nothing is acknowledged there, and ours is taken up again."""
    async with another_database(cenote_servers) as elsewhere, cenote.open(**two.at(two.first)) as store:
        agent = store.agent("one")
        await agent.put("k", "ours", durability="sql")
        async with cenote.open(**two.at(two.second, sql=elsewhere)) as stranger:
            strange_id = stranger._core.epochs.store_id
            await stranger.agent("one").put("k", "theirs", durability="sql")
        two.second.stop()
        generation = store._core.link.generation
        swap(two.first, two.second.directory / "store")
        await reached(lambda: store._core.link.generation > generation, "a connection to the other NATS")
        before = sum((await messages(two.first)).values())
        refused = await error_of(agent.put("k", "acked by the wrong one"))
        demand(refused is not None, "I1: a write was acknowledged by another store's NATS")
        assert strange_id in str(refused)
        assert store._core.epochs.store_id in str(refused)
        with pytest.raises(SetupError):
            await agent.get("k2")
        health = await store.health()
        assert health.verdict is cenote.Verdict.UNHEALTHY
        assert strange_id in str(health)
        await asyncio.sleep(1.2)  # a flusher that goes on would have renewed its lease by now
        assert sum((await messages(two.first)).values()) == before, "something was written to the other NATS"
        swap(two.first, two.first.directory / "aside")
        await reached(lambda: store._core.stream.ours and store._core.link.connected, "our own NATS again")
        assert await agent.get("k") == "ours"
        await agent.put("k", "ours again", durability="sql")


def swap(server: KvServer, other: Path) -> None:
    """The server is gone, and another one with that store answers at its address; ours is put aside."""
    server.kill()
    ours = server.directory / "store"
    ours.rename(server.directory / "taken")
    shutil.move(other, ours)
    (server.directory / "taken").rename(server.directory / "aside")
    server.start()


@pytest.mark.judge
async def test_a_wiped_nats_is_adopted_under_way(two: Two, capsys: pytest.CaptureFixture[str]) -> None:
    """It has lost what was not flushed; nobody goes on as if nothing had happened, and nobody needs a restart."""
    async with cenote.open(**two.at(two.first)) as store:
        agent = store.agent("one")
        await agent.put("k", 1, durability="sql")
        (two.first.directory / "empty").mkdir()
        generation = store._core.link.generation
        swap(two.first, two.first.directory / "empty")
        await reached(lambda: store._core.link.generation > generation, "a connection to the empty NATS")
        with pytest.raises(SetupError, match="lost everything"):
            await agent.put("k", 2)
        assert await messages(two.first) == {}, "buckets were made"
        await age_heartbeats(two)
        done = await asyncio.to_thread(two.cli(capsys, two.first), "adopt", "--yes")
        assert done.code == 0, done.err
        await reached(lambda: store._core.stream.ours, "the process follows its database")
        assert await agent.get("k") == 1
        await agent.put("k", 2, durability="sql")


@pytest.mark.judge
async def test_who_still_uses_the_former_nats_learns_it(two: Two, capsys: pytest.CaptureFixture[str]) -> None:
    """Its database was given away: the flusher tells everybody who writes there."""
    async with cenote.open(**two.at(two.first)) as store, another(store) as writer:
        agent = store.agent("one")
        await agent.put("k", 1, durability="sql")
        await age_heartbeats(two)
        done = await asyncio.to_thread(two.cli(capsys, two.second), "adopt", "--yes")
        assert done.code == 0, done.err
        await writer.agent("one").put("k", 2)

        async def refused() -> bool:
            try:
                await writer.agent("one").put("k", 3)
            except SetupError as error:
                return "adopt" in str(error.hint)
            return False

        await eventually(refused, "I1: writes go on into a NATS that nobody flushes")
        assert (await writer.health()).verdict is cenote.Verdict.UNHEALTHY
