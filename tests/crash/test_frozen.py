"""A flusher frozen in the middle of a batch and woken when the world has moved on: SQL never goes back, nothing deleted
rises, what others wrote and were told of stays (I1, I2, I3; flow rules 3, 4, 5, 12, 22). The processes are real, and so
is their sleep; each test runs again without the rule that it is about."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import frozen
import pytest
import rewinds
from frozen import SENT, Sleeper, Wire
from kv_past import past
from rewinds import Arena

import cenote
from cenote.engine import core, machines
from cenote.engine.adoption import Ground
from cenote.engine.formats import raise_format
from cenote.model import entry
from cenote.sql import migrate
from cenote.store import Store
from cenote.testing import TestServers
from witness import Tables, another, demand, eventually, evict_all, in_kv, reached, toothed

AGENT = "frozen"
QUICK = {"flush__drain_ms": 0}
TAKEN, COMMITTED = "flush.taken", "flush.committed"
IN_HAND = {"k": "in hand", "gone": "in hand", "only": "in hand"}


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with rewinds.arena(tmp_path_factory.mktemp("arena")) as servers:
        yield servers


# --- the rules, taken out -------------------------------------------------------------------------------------


def the_guard(patch: pytest.MonkeyPatch) -> None:
    """A flush is committed whatever has begun since its batch was fetched."""
    newest = "epoch >= $1 AND $2::text IS NOT NULL ORDER BY epoch DESC LIMIT 1 FOR SHARE"
    patch.setattr(frozen, "replaced", [("epoch = $1 AND incarnation = $2 FOR SHARE", newest)])


def the_guard_where_nobody_knew(patch: pytest.MonkeyPatch) -> None:
    """Nor does the heir remember what was acknowledged to it: no epoch begins, whose fence would refuse the batch."""
    the_guard(patch)
    patch.setattr(core.Core, "met_sequence", property(lambda one: one.seen_sequence))


def the_fence(patch: pytest.MonkeyPatch) -> None:
    """The last statement wins."""
    patch.setattr(frozen, "replaced", [("(s.epoch, s.version) < (excluded.epoch, excluded.version)", "true")])


def the_floor(patch: pytest.MonkeyPatch) -> None:
    """A flush inserts whatever it holds."""
    patch.setattr(
        frozen, "replaced", [("(coalesce(e, $1), r) > (SELECT gc_epoch, gc_version FROM guard)", "true")]
    )  # fmt: skip


def the_range_of_schemas(patch: pytest.MonkeyPatch) -> None:
    """Who flushes does not ask whether it knows the schema."""
    where = "WHERE name = 'schema_min_reader'"
    patch.setattr(frozen, "replaced", [(where, f"{where} UNION SELECT '0' ORDER BY 1 LIMIT 1")])


# --- what the tests do ----------------------------------------------------------------------------------------


class Scene(NamedTuple):
    """A store, the flusher that sleeps with its entries in hand, the wire that may hold its statement."""

    heir: Store
    dsn: str
    sleeper: Sleeper
    wire: Wire | None

    async def taken_over(self) -> None:
        """Somebody else flushes."""
        lease = self.heir._machines.lease

        async def by_the_heir() -> bool:
            board = await lease.read()
            return board is not None and board.holder == self.heir._core.writer_id

        await reached(by_the_heir, "another process flushes")

    async def write_newer(self, *keys: str) -> None:
        """The heir's writes: these keys, and one that is deleted."""
        agent = self.heir.agent(AGENT)
        for key in keys:
            await agent.put(key, "newer", durability="sql")
        await (await agent.delete("gone")).durable(20)

    async def wake(self) -> dict[str, Any]:
        """Let the statement and its process go, and give them time."""
        if self.wire is not None:
            self.wire.let_go()
        return await self.sleeper.woken()

    async def judge(self, expected: dict[str, Any]) -> None:
        """What was acknowledged is there, in KV and, once evicted, in SQL; no row ever went back."""
        heir = self.heir
        async with outside(heir, self.dsn) as sql:
            await sql.demand_monotonic()
            await heir.flush(20)
            found = {key: await heir.agent(AGENT).get(key) for key in expected}
            demand(found == expected, f"I1, I2: {found}")
            await evict_all(heir)
            async with another(heir) as other:
                found = {key: await other.agent(AGENT).get(key) for key in expected}
            demand(found == expected, f"I1, I2, I3: evicted, {found}")
            assert await sql.demand_monotonic() >= 2


Act = Callable[[Scene], Awaitable[None]]


@asynccontextmanager
async def outside(store: Store, dsn: str) -> AsyncIterator[Tables]:
    link = await asyncpg.connect(dsn)
    try:
        yield Tables(link, store.config.names.schema("agents"))
    finally:
        await link.close()


async def play(
    settings: dict[str, Any], stage: str, act: Act, remember: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Freeze a flusher with `IN_HAND` in its hands, and act. `remember` is called before those are written."""
    dsn = settings["sql"]
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(dsn).open()) if stage == SENT else None
        theirs = settings if wire is None else settings | {"sql": wire.url}
        one = await stack.enter_async_context(frozen.sleeper(theirs, stage))
        heir = await stack.enter_async_context(cenote.open(**settings))
        agent = heir.agent(AGENT)
        for key in IN_HAND:
            await agent.put(key, "kept", durability="sql")
        async with outside(heir, dsn) as sql:
            await sql.audit()
        if remember is not None:
            await remember()
        await one.arm()
        if wire is not None:
            wire.catch(b"only")
        await agent.put_many(IN_HAND)
        await one.stopped(wire)
        await act(Scene(heir, dsn, one, wire))


# --- what happens while it sleeps -----------------------------------------------------------------------------


@toothed(the_floor)
@pytest.mark.parametrize("stage", [TAKEN, pytest.param(SENT, marks=pytest.mark.judge)])
async def test_woken_after_a_collection(stage: str, cenote_servers: TestServers) -> None:
    """The tombstone that overtook its entry has left SQL, so no row refuses it any more."""

    async def act(scene: Scene) -> None:
        heir = scene.heir
        await scene.taken_over()
        await asyncio.sleep(0.7)  # until what it had asked for expires: what it is given comes again only after 5 s
        await scene.write_newer("k", "only")

        async with outside(heir, scene.dsn) as sql:

            async def collected() -> bool:
                await evict_all(heir)
                return await sql.row(heir.agent(AGENT), "gone") is None

            await reached(collected, "the tombstone leaves SQL")
            await scene.wake()
            demand(await sql.row(heir.agent(AGENT), "gone") is None, "I2: a deleted key came back")
        await scene.judge({"k": "newer", "gone": None, "only": "newer"})

    await play(cenote_servers.by_url(**QUICK, state__tombstone_s=0.1), stage, act)


@toothed(the_guard_where_nobody_knew)
@pytest.mark.parametrize("stage", [SENT, pytest.param(TAKEN, marks=pytest.mark.judge)])
async def test_woken_after_a_rewind(stage: str, cenote_servers: TestServers, tmp_path: Path) -> None:
    """KV has lost what it holds, and has given those sequences to others."""
    with past(tmp_path, cenote_servers) as kv:

        async def act(scene: Scene) -> None:
            await kv.rewind(scene.heir)
            await scene.taken_over()
            await scene.write_newer("k")
            await scene.wake()
            await scene.judge({"k": "newer", "gone": None, "only": "kept"})

        await play(kv.settings, stage, act, remember=lambda: asyncio.to_thread(kv.remember))


@pytest.mark.judge
@toothed(the_guard)
@pytest.mark.parametrize("stage", [TAKEN, SENT])
async def test_woken_after_another_epoch_began(stage: str, cenote_servers: TestServers) -> None:
    """The bucket was deleted, and is another one; no connection broke."""

    async def act(scene: Scene) -> None:
        theirs = scene.heir._core
        await theirs.link.api(f"STREAM.DELETE.{theirs.stream.name}")
        await reached(lambda: theirs.epochs.newest == 2, "the next epoch")
        await scene.taken_over()
        await scene.write_newer("k")
        await scene.wake()
        await scene.judge({"k": "newer", "gone": None, "only": "kept"})

    await play(cenote_servers.by_url(**QUICK), stage, act)


@pytest.mark.judge
@toothed(the_fence)
async def test_woken_before_an_older_postgresql(arena: Arena) -> None:
    """PostgreSQL is put back to before its batch; its epoch is the same, so nothing but the fence is in its way."""
    await _older_postgresql(arena, TAKEN)


@pytest.mark.judge
async def test_woken_with_a_commit_that_postgresql_lost(arena: Arena) -> None:
    """It was about to acknowledge what SQL held, and holds no more.

    Flow rule 5 has its teeth in `test_sql_rewinds.py`: here what is not acknowledged in time may be delivered again
    before it wakes, and then nothing is lost without the rule either.
    """
    await _older_postgresql(arena, COMMITTED)


async def _older_postgresql(arena: Arena, stage: str) -> None:
    async def act(scene: Scene) -> None:
        await arena.put_back_sql()
        await scene.taken_over()
        await scene.write_newer("k")
        await scene.wake()
        await scene.judge({"k": "newer", "gone": None, "only": "in hand"})

    await play(arena.settings(state__ttl_s=600), stage, act, remember=arena.image_sql)


@contextmanager
def newer() -> Iterator[None]:
    """This process is of the next version: it reads and writes one more format of entries."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (entry, core, machines):
            patch.setattr(module, "FORMAT", 2)
        patch.setitem(entry._HEADS, 2, b"Cenote: 2;")
        patch.setattr(entry, "_READ", entry._READ | {"2"})
        yield


@contextmanager
def one_more_migration() -> Iterator[None]:
    """And one more migration, after which the version before cannot use the schema."""
    ours = migrate.known()
    head = ours[-1].number + 1
    text = "ALTER TABLE {agents}.state ADD COLUMN later integer NOT NULL DEFAULT 0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "known", lambda: (*ours, migrate.Migration(head, "later", "post", head, text)))
        yield


@pytest.mark.judge
@toothed(the_fence, the_range_of_schemas)
async def test_woken_after_an_upgrade(cenote_servers: TestServers) -> None:
    """Format and schema are of the next version; its statement, of this one, arrives after that. Then nobody else is
    left to flush: it does not, and says why."""

    async def act(scene: Scene) -> None:
        heir, sleeper = scene.heir, scene.sleeper
        await scene.taken_over()
        with one_more_migration():
            assert await migrate.migrate(heir._core.db, "auto")
            assert await raise_format(Ground(heir._core.link, heir._core.table, heir._core.config)) == 2
            await reached(lambda: heir._core.format == 2, "the next format")
            await scene.write_newer("k")
            assert b"Cenote: 2;" in (await in_kv(heir.agent(AGENT), "k") or pytest.fail("not there")).header
            await scene.wake()
            await scene.judge({"k": "newer", "gone": None, "only": "in hand"})
            await heir.aclose()

            async def refused() -> bool:
                return any("too new" in line for line in (await sleeper.tells())["log"])

            await eventually(refused, "I17: an old process flushes into a schema that it does not know")

    with newer():
        await play(cenote_servers.by_url(**QUICK), SENT, act)
