"""Servers that are killed, full, slow or cut off in the midst of an answer: S11, S12, S14, S18, S20, S22, S23, and flow
rule 16 over a restart. What has a rule of ours runs again without it; the others are controls: what the servers
promise, and we build on."""

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from kv_cluster import cluster
from kv_server import USER, KvServer, running
from pg_server import PgServer, running_server

import cenote
from cenote.agent import AgentState
from cenote.engine.writer import Writer
from cenote.errors import UnavailableError
from cenote.kv.errors import AnswerLost
from cenote.kv.mux import Reply
from cenote.kv.stream import sequence_of
from cenote.model.key import sql_key
from cenote.sql import pool
from cenote.sql.loader import Queries
from cenote.sql.rows import Guard, Heartbeat, Row
from cenote.store import Store
from cenote.testing import FaultProxy, TestServers
from witness import Tables, Violation, another, at, demand, reached, tables, toothed

QUICK = {"flush__drain_ms": 0}
NOBODY_FLUSHES = QUICK | {"flush__enabled": False}
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def pg() -> Iterator[PgServer]:
    """A PostgreSQL that may be killed."""
    with running_server() as server:
        yield server


def place(servers: TestServers, kv: KvServer, **overrides: Any) -> dict[str, Any]:
    """Arguments of `cenote.open()`: a NATS of our own, the session's PostgreSQL."""
    ours = {"kv": kv.url, "kv__user": USER, "kv__password": kv.password}
    return servers.by_url(**QUICK) | ours | overrides


def port(servers: TestServers, name: str) -> int:
    """Where a server listens."""
    return int(servers.info[name]["address"].rpartition(":")[2])


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_fence(patch: pytest.MonkeyPatch) -> None:
    """SQL takes whatever comes last."""
    newer = "(s.epoch, s.version) < (excluded.epoch, excluded.version)"
    plain = Queries.__getitem__
    patch.setattr(Queries, "__getitem__", lambda self, name: plain(self, name).replace(newer, "true"))


def the_operation_at_the_leader(patch: pytest.MonkeyPatch) -> None:
    """A write whose answer was lost is sent again: the server will know it by its id."""

    async def blindly(self: Writer, target: Any, header: bytes, body: bytes, *_: Any, **__: Any) -> int:
        while True:
            try:
                return sequence_of(await self._send(target, header, body, 1_000))
            except (UnavailableError, AnswerLost):
                await asyncio.sleep(0.02)

    plain = Writer._send

    def send(self: Writer, target: Any, header: bytes, body: bytes, timeout_ms: int) -> asyncio.Future[Reply]:
        named = header.rstrip(b"\r\n") + b"\r\nNats-Msg-Id: of-" + body.strip(b'"') + b"\r\n\r\n"
        return plain(self, target, named, body, timeout_ms)

    patch.setattr(Writer, "_insist", blindly)
    patch.setattr(Writer, "_send", send)


def the_wait_for_the_disk(patch: pytest.MonkeyPatch) -> None:
    """PostgreSQL answers before its log is written."""
    patch.setattr(pool, "SERVER_SETTINGS", pool.SERVER_SETTINGS | {"synchronous_commit": "off"})


# --- the way to PostgreSQL ----------------------------------------------------------------------------------


@toothed(the_fence)
async def test_s11_a_statement_that_is_late_never_takes_sql_back(cenote_servers: TestServers) -> None:
    """Two connections: what was sent first on a slow one arrives 300 ms after what was sent on the other one."""
    async with FaultProxy(port(cenote_servers, "postgres")) as proxy:
        settings = cenote_servers.by_url(sql_port=proxy.port, **QUICK)
        direct = {"sql": cenote_servers.by_url()["sql"]}
        async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql, another(
            store, **direct
        ) as other:  # fmt: skip
            await sql.audit()
            agent = store.agent("s11")
            await agent.put("k", "idle", durability="sql")

            async def slow() -> None:
                proxy.hold()

            with at(flush_taken=slow) as crossed:
                await agent.put("k", "busy")
                await reached(lambda: crossed.get("flush.taken"), "a statement on its way")
                await asyncio.sleep(0.3)  # the delay of the slow connection
                await agent.put("k", "done")
                assert await by_hand(store, other, agent, "k") == 1
                proxy.heal()
                await store.flush(20)
            demand(await sql.value(agent, "k") == '"done"', "I1: KV is done, and SQL is busy")
            assert await sql.demand_monotonic() >= 2


async def by_hand(store: Store, other: Store, agent: AgentState, key: str) -> int:
    """Flush one entry over another store's connections, as a second flusher would; the number of rows it changed."""
    entry, core = await agent.entry(key), store._core
    epoch, revision = entry.version
    time_us = int(entry.written_at.timestamp() * 1_000_000)
    row = Row(agent.id, sql_key(key), f'"{entry.value}"', None, revision, epoch, time_us, False, False, None)
    heartbeat = Heartbeat("another", core.epochs.store_id, revision, time_us)
    done = await other._core.table.flush([row], Guard(core.epochs.newest, core.incarnation), heartbeat)
    assert done is not None
    return done.applied


@toothed(the_fence)
async def test_s12_a_commit_whose_answer_was_lost_has_one_effect(cenote_servers: TestServers) -> None:
    """The connection is reset between PostgreSQL's commit and its answer; the flush is repeated, as it must be."""
    async with FaultProxy(port(cenote_servers, "postgres")) as proxy:
        settings = cenote_servers.by_url(sql_port=proxy.port, **QUICK)
        async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql:
            await sql.audit()
            agent = store.agent("s12")
            await agent.put("counter", 1, durability="sql")
            for number in range(2, 5):
                proxy.lose_answer_to(f"number {number}".encode())
                await agent.put("counter", f"number {number}", durability="sql")
            await store.flush(20)
            assert proxy.lost == 3, "no answer was lost"
            history = [one["version"] for one in await sql.history()]
            demand(len(history) == len(set(history)) == 4, f"I12: one write, two effects: {history}")
            told = [key for commit in await store._core.table.commits(None, 100) or [] for key in commit.keys]
            demand(told == ["counter"] * 4, f"I12: the feed tells a write twice: {told}")


@toothed(the_wait_for_the_disk)
@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGKILL, marks=pytest.mark.judge), signal.SIGQUIT], ids=["S20 kill -9", "S23 immediate"]
)
async def test_s20_s23_what_was_promised_by_sql_outlives_postgresql(how: signal.Signals, pg: PgServer) -> None:
    """Under load; SQL alone is asked, for nobody flushes any more: KV might be gone as well."""
    async with own_kv(pg) as settings, cenote.open(**settings) as store:
        agent, acked = store.agent("s20"), dict[str, int]()

        async def write(task: int) -> None:
            for number in range(1_000_000):
                receipt = await agent.put(f"{task}.{number % 20}", number, durability="sql")
                acked[f"{task}.{number % 20}"] = receipt.version.revision

        writers = [asyncio.create_task(write(task)) for task in range(16)]
        await reached(lambda: sum(acked.values()) and len(acked) == 320, "some hundred acknowledged writes")
        await asyncio.to_thread(pg.stop, how)
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        await store._machines.flusher.stop()  # type: ignore[union-attr]  # it flushes
        await asyncio.to_thread(pg.start)
        link = await asyncpg.connect(pg.url())
        sql = Tables(link, store.config.names.schema("agents"))
        try:
            rows = {key: await sql.row(agent, key) for key in acked}
        except asyncpg.UndefinedTableError:
            raise Violation("I1: not even the table is there that they were promised to be in") from None
        finally:
            await link.close()
    lost = [key for key, row in rows.items() if row is None or row["version"] < acked[key]]
    demand(not lost, f"I1: {len(lost)} of {len(acked)} keys are older in SQL than was promised")


@asynccontextmanager
async def own_kv(pg: PgServer) -> AsyncIterator[dict[str, Any]]:
    """Arguments of `cenote.open()`: a NATS that nobody else uses, and that PostgreSQL."""
    with tempfile.TemporaryDirectory() as directory, running(Path(directory)) as kv:
        yield {
            "kv": kv.url, "kv__user": USER, "kv__password": kv.password, "sql": pg.url(), "sql__migrate": "auto",
            "namespace": f"d{kv.port}", **QUICK,
        }  # fmt: skip


# --- NATS ---------------------------------------------------------------------------------------------------


@pytest.mark.judge
async def test_s14_a_killed_nats_loses_nothing_that_it_acknowledged(
    cenote_servers: TestServers, tmp_path: Path
) -> None:
    """Some thousand writes, of which SQL has seen none; killed while they come."""
    with running(tmp_path) as kv:
        async with cenote.open(**place(cenote_servers, kv, **NOBODY_FLUSHES)) as store:
            agent, acked = store.agent("s14"), dict[str, int]()

            async def write(task: int) -> None:
                for number in range(1_000_000):
                    await agent.put(f"{task}.{number}", number)
                    acked[f"{task}.{number}"] = number

            writers = [asyncio.create_task(write(task)) for task in range(16)]
            await reached(lambda: len(acked) > 3_000, "some thousand acknowledged writes")
            kv.kill()
            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)
            kv.start()
        async with cenote.open(**place(cenote_servers, kv, **NOBODY_FLUSHES) | space(store)) as other:
            found = {key: value async for key, value in other.agent("s14").items()}
        lost = {key for key, number in acked.items() if found.get(key) != number}
        demand(not lost, f"I1: {len(lost)} of {len(acked)} acknowledged writes are gone")


def space(store: Store) -> dict[str, Any]:
    """The namespace of a store."""
    return {"namespace": store.config.namespace}


@pytest.mark.judge
@toothed(the_operation_at_the_leader)
async def test_i12_a_repeat_after_a_restart_of_nats_undoes_nobody(cenote_servers: TestServers, tmp_path: Path) -> None:
    """Flow rule 16: stored, its answer lost; another one overwrites it; the server is killed and comes back. With the
    message that was overwritten the server has forgotten its id, too."""
    with running(tmp_path) as kv:
        async with FaultProxy(kv.port) as proxy:
            near = place(cenote_servers, kv, **NOBODY_FLUSHES)
            async with (
                cenote.open(**near | {"kv": f"nats://127.0.0.1:{proxy.port}"}) as store,
                cenote.open(**near) as other,
            ):
                mine, theirs = store.agent("i12"), other.agent("i12")
                away = asyncio.Event()
                store._core.link.on_disconnect.extend((proxy.cut, away.set))
                proxy.lose_answer_to(b'"first"')
                write = asyncio.create_task(mine.put("k", "first"))
                await reached(lambda: proxy.lost and away.is_set(), "the loss of the answer")
                store._core.link.on_disconnect.remove(proxy.cut)
                assert await theirs.get("k") == "first"
                await theirs.put("k", "second")
                before = other._core.link.generation
                kv.kill()
                await asyncio.to_thread(kv.start)
                await reached(lambda: other._core.link.generation > before, "the next connection")
                proxy.heal()
                outcome = (await asyncio.gather(write, return_exceptions=True))[0]
                other._core.cache.clear()  # what KV holds is asked
                demand(await theirs.get("k") == "second", f"I12: an acked write was undone by a repeat: {outcome!r}")
                assert isinstance(outcome, cenote.OutcomeUnknownError)


@contextmanager
def small_disk(directory: Path, size_mib: int) -> Iterator[list[str]]:
    """A disk of its own for what is started with this prefix; it lives as long as the block, not as one process."""
    directory.mkdir()
    script = f'mount -t tmpfs -o size={size_mib}m tmpfs "{directory}" && echo mounted && read end'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != b"mounted\n":
                pytest.skip("this machine lets nobody mount a tmpfs in a namespace of his own")
            inside = ["--user", "--mount", "--preserve-credentials"]
            yield ["nsenter", f"--target={holder.pid}", *inside]
        finally:
            holder.communicate(b"\n")


@pytest.mark.judge
async def test_s18_a_full_disk_refuses_and_loses_nothing(cenote_servers: TestServers, tmp_path: Path) -> None:
    """The disk itself is full, below every limit that the server knows of. SQL takes nothing, so nothing can leave."""
    with small_disk(tmp_path / "store", 24) as prefix:
        kv = KvServer(tmp_path)
        kv.command = [*prefix, *kv.command]
        kv.start()
        try:
            settings = place(cenote_servers, kv, **NOBODY_FLUSHES)
            async with cenote.open(**settings, kv__deadline_ms=2_000, kv__request_timeout_ms=1_000) as store:
                agent, acked = store.agent("s18"), dict[str, str]()
                refused: list[cenote.CenoteError] = []
                for number in range(400):
                    value = f"{number} " + os.urandom(60_000).hex()
                    try:
                        await agent.put(f"k{number}", value)
                        acked[f"k{number}"] = value
                    except cenote.CenoteError as error:
                        refused.append(error)
                        if len(refused) == 3:
                            break
                assert len(acked) > 50
                assert len(refused) == 3, "the disk was not full"
                kinds = (cenote.BackpressureError, cenote.OutcomeUnknownError)
                demand(all(isinstance(error, kinds) for error in refused), f"I13: not typed: {refused}")
                demand(all(error.hint for error in refused), f"I13: nobody is told what to do: {refused}")
                await all_there(agent, acked, "while the disk is full")
            kv.kill()
            # Room again: on a full disk even the word that KV has been compared (F-wait) may find none.
            grow = [*prefix, "mount", "-o", "remount,size=64m", str(tmp_path / "store")]
            await asyncio.to_thread(subprocess.run, grow, check=True)
            await asyncio.to_thread(kv.start)
            async with cenote.open(**settings, kv__deadline_ms=60_000) as store:
                await all_there(store.agent("s18"), acked, "after kill -9 and a start")
                await store.agent("s18").put("after", 1)
        finally:
            kv.stop()


async def all_there(agent: AgentState, acked: dict[str, str], when: str) -> None:
    """I1: everything that was acknowledged is read."""
    lost = [key for key, value in acked.items() if await agent.get(key) != value]
    demand(not lost, f"I1: {len(lost)} of {len(acked)} are lost {when}")


@pytest.mark.judge
async def test_s22_a_follower_that_was_frozen_takes_nobody_back(cenote_servers: TestServers, tmp_path: Path) -> None:
    """A process whose server is a follower: it stands still while others write, and answers at once when it goes on."""
    common = cenote_servers.by_url(**NOBODY_FLUSHES, memory__entries_max=0)
    async with (
        cluster(tmp_path / "kv") as kv,
        cenote.open(**common | kv.settings(2)) as behind,
        cenote.open(**common | kv.settings(0) | space(behind)) as leading,
    ):
        await kv.lead(behind._core.stream.name, 0)
        await reached(lambda: behind._core.stream.ours and leading._core.stream.ours, "both trust the stream")
        mine, theirs, looked = behind.agent("s22"), leading.agent("s22"), 0
        await theirs.put("hot", 0)
        for turn in range(1, 4):
            seen = await mine.get("hot")
            kv.nodes[2].freeze()
            for number in range(150):
                await theirs.put(f"k{number}", f"{turn}" + "x" * 20_000)
                await theirs.put("hot", turn * 1_000 + number)
            kv.nodes[2].thaw()
            await mine.put("own", turn)
            demand(await mine.get("own") == turn, "I5: an own write reads as absent or older")
            while seen < turn * 1_000 + 149:
                value = await mine.get("hot")
                demand(value >= seen, f"I4: a read went back from {seen} to {value}")
                seen, looked = value, looked + 1
        assert looked >= 3
