"""Servers of our own that go back in time under load, and what must hold afterwards.

A round opens three stores on one NATS and one PostgreSQL, lets them write, delete, compare and read, calls a fault at a
moment that nobody chose, goes on a little, and judges: what either side surely held at the fault is there, what was
acknowledged since is there, nothing deleted or overtaken rises, a version from before matches nothing else, SQL's rows
only go forward, and everything drains into SQL without anybody's help.

A fault is a coroutine function of an `Arena` and a `random.Random`; it answers what went back to when, as a `Fault`.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

import cenote
import history
from cenote.engine import entries
from cenote.errors import CodecError
from cenote.model import key as keys
from cenote.model import value as values
from cenote.store import Store
from witness import Tables, Violation, demand, eventually, evict_all

sys.path.append(str(Path(__file__).parents[1] / "integration"))

import kv_server
import pg_server

AGENT = "rewound"
KEYS = [f"k{number}" for number in range(40)]  # written again and again; as many keys are written only once
TTL_S = 4.0  # of an idle entry in KV: above the depth of a rewind, or both copies of an entry may be gone
L1_LAG_S = 1.5  # the contract of L1: a probe, and the delay of the feed
AFTER_MIN = 50  # writes that a round must see acknowledged after the fault
SQL = ".sql"  # ends the session of a task whose writes return after PostgreSQL's commit
_numbers = count(1)


class Fault(NamedTuple):
    """What a fault did, on the clock of `time.monotonic`: when it began and when both servers answered again, and the
    moments to which KV and SQL went back; None for a side that did not."""

    down: float
    up: float
    kv_back_to: float | None = None
    sql_back_to: float | None = None


class Arena:
    """One NATS and one PostgreSQL that may be imaged and put back."""

    def __init__(self, kv: kv_server.KvServer, pg: pg_server.PgServer) -> None:
        self.kv = kv
        self.pg = pg

    def settings(self, **overrides: Any) -> dict[str, Any]:
        """Arguments for `cenote.open()`: a namespace that nobody has used."""
        return {
            "kv": self.kv.url, "kv__user": kv_server.USER, "kv__password": self.kv.password, "sql": self.pg.url(),
            "sql__migrate": "auto", "namespace": f"r{os.getpid()}_{next(_numbers)}", "flush__drain_ms": 0,
            "state__ttl_s": TTL_S, **overrides,
        }  # fmt: skip

    async def image_kv(self) -> float:
        """Keep the store as a power loss at this moment would leave it; the moment up to which it surely holds acks."""
        moment = time.monotonic()
        self.kv.freeze()
        try:
            await asyncio.to_thread(_copy, self.kv.directory / "store", self.kv.directory / "image")
        finally:
            self.kv.thaw()
        return moment

    async def image_sql(self) -> float:
        """The same for PostgreSQL: all its processes stand still, so that the copy is of one moment."""
        moment = time.monotonic()
        with _frozen(self.pg):
            await asyncio.to_thread(_copy, self.pg.root / "data", self.pg.root / "image")
        return moment

    async def put_back_kv(self) -> None:
        """Kill the server, put the image in the place of its store, start it again."""
        self.kv.kill()
        await asyncio.to_thread(_replace, self.kv.directory / "store", self.kv.directory / "image")
        await asyncio.to_thread(self.kv.start)

    async def put_back_sql(self) -> None:
        """The same for PostgreSQL's data directory."""
        await asyncio.to_thread(self.pg.stop, signal.SIGQUIT)
        await asyncio.to_thread(_replace, self.pg.root / "data", self.pg.root / "image")
        (self.pg.root / "data" / "postmaster.pid").unlink()
        await asyncio.to_thread(self.pg.start)

    async def begin_standby(self) -> None:
        """A standby that has everything up to now, and falls behind from now on."""
        shutil.rmtree(self.pg.root / "standby", ignore_errors=True)
        command = (self.pg.bin / "pg_basebackup", "-d", self.pg.url(), "-D", self.pg.root / "standby", "-c", "fast")
        code = await asyncio.to_thread(self.pg._popen(*command).wait, 60)
        assert code == 0, (self.pg.root / "log").read_text()[-500:]

    async def fail_over(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        """The primary dies; in its place comes the standby, read-only at first, and is promoted."""
        await asyncio.to_thread(self.pg.stop, signal.SIGQUIT)
        (self.pg.root / "standby" / "standby.signal").touch()
        await asyncio.to_thread(_replace, self.pg.root / "data", self.pg.root / "standby")
        self.pg.process = self.pg._popen(
            self.pg.bin / "postgres", "-D", self.pg.root / "data", "-p", str(self.pg.port), "-k", self.pg.root
        )
        link = None
        async with asyncio.timeout(30):
            while link is None:
                try:
                    link = await asyncpg.connect(self.pg.url())
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.02)
            assert await link.fetchval("SELECT pg_is_in_recovery()")
            await meanwhile()
            await link.fetchval("SELECT pg_promote()")
        await link.close()


@contextmanager
def arena(directory: Path) -> Iterator[Arena]:
    """Both servers, running."""
    with kv_server.running(directory) as kv, pg_server.running_server() as pg:
        yield Arena(kv, pg)


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", source, target], check=True)  # keeps owners, which shutil does not


def _replace(place: Path, image: Path) -> None:
    shutil.rmtree(place)
    image.rename(place)


@contextmanager
def _frozen(pg: pg_server.PgServer) -> Iterator[None]:
    assert pg.process is not None
    frozen = [pg.process.pid]
    os.kill(pg.process.pid, signal.SIGSTOP)  # first: then it begets nobody
    frozen += _children(pg.process.pid)
    for child in frozen[1:]:
        _signal(child, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in reversed(frozen):
            _signal(process, signal.SIGCONT)


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended by itself


# --- faults ---------------------------------------------------------------------------------------------------


async def sql_goes_back(arena: Arena, dice: random.Random) -> Fault:
    """PostgreSQL's data directory is put back to a copy taken 1 to 2 s earlier."""
    back_to = await arena.image_sql()
    await asyncio.sleep(1 + dice.random())
    down = time.monotonic()
    await arena.put_back_sql()
    return Fault(down, time.monotonic(), sql_back_to=back_to)


async def kv_goes_back(arena: Arena, dice: random.Random) -> Fault:
    """NATS's store is put back to a copy taken 0.3 to 2 s earlier."""
    back_to = await arena.image_kv()
    await asyncio.sleep(0.3 + 1.7 * dice.random())
    down = time.monotonic()
    await arena.put_back_kv()
    return Fault(down, time.monotonic(), kv_back_to=back_to)


async def both_go_back(arena: Arena, dice: random.Random) -> Fault:
    """Both are put back, each to a moment of its own, in either order."""
    images = [("kv", arena.image_kv), ("sql", arena.image_sql)]
    dice.shuffle(images)
    back_to: dict[str, float] = {}
    for name, image in images:
        back_to[name] = await image()
        await asyncio.sleep(0.2 + dice.random() * 0.8)
    put_back = [arena.put_back_kv, arena.put_back_sql]
    dice.shuffle(put_back)
    down = time.monotonic()
    for put in put_back:
        await put()
        await asyncio.sleep(dice.random() * 0.5)
    return Fault(down, time.monotonic(), kv_back_to=back_to["kv"], sql_back_to=back_to["sql"])


# --- the load -------------------------------------------------------------------------------------------------


class Task:
    """One task's operations, journaled. A session ending in `SQL` waits for PostgreSQL with each write."""

    def __init__(self, store: Store, path: Path, session: str, dice: random.Random) -> None:
        self._agent = store.agent(AGENT)
        self._session = session
        self._journal = history.Journal(path, session)
        self._dice = dice
        self._numbers = 0
        self._remembered: dict[str, tuple[cenote.Version, Any]] = {}

    async def work(self) -> None:
        """For ever."""
        while True:
            key = self._dice.choice(KEYS)
            kind = self._dice.random()
            if kind < 0.25:
                await self._read(key)
            elif kind < 0.35:
                await self._compare()
            elif kind < 0.5:
                await self._write(f"once.{self._session}.{self._numbers}", delete=False)
            else:
                await self._write(key, delete=kind > 0.92)
            await asyncio.sleep(0.004 + self._dice.random() * 0.012)

    async def _write(self, key: str, *, delete: bool) -> None:
        self._numbers += 1
        value = None if delete else f"{self._session}.{self._numbers}" + "x" * self._dice.randrange(200)
        intent = self._journal.begin("write", key, value)
        try:
            receipt = await (self._agent.delete(key) if delete else self._agent.put(key, value))
            if self._session.endswith(SQL):
                await receipt.durable(10)
        except (cenote.OutcomeUnknownError, cenote.NotDurableError):
            return
        except (cenote.UnavailableError, cenote.ConflictError, cenote.BackpressureError):
            self._journal.refused(intent)
            return
        self._journal.end(intent)

    async def _read(self, key: str) -> None:
        intent = self._journal.begin("read", key)
        try:
            entry = await self._agent.entry(key)
        except cenote.NotFoundError:
            self._journal.end(intent, None)
            return
        except cenote.UnavailableError:
            self._journal.refused(intent)
            return
        if entry.stale:
            self._journal.refused(intent)
            return
        self._journal.end(intent, entry.value)
        if key not in self._remembered or self._dice.random() < 0.2:
            self._remembered[key] = (entry.version, entry.value)

    async def _compare(self) -> None:
        """A conditional write on what was read before, perhaps before the fault: if it is taken, what was read then is
        what the key holds now, so it is noted as a read of that, too."""
        if not self._remembered:
            return
        key = self._dice.choice(list(self._remembered))
        version, known = self._remembered.pop(key)
        self._numbers += 1
        value = f"{self._session}.{self._numbers}"
        seen = self._journal.begin("read", key)
        intent = self._journal.begin("write", key, value)
        try:
            await self._agent.put(key, value, if_version=version)
        except cenote.OutcomeUnknownError:
            self._journal.refused(seen)
            return
        except (cenote.UnavailableError, cenote.ConflictError, cenote.BackpressureError):
            self._journal.refused(seen)
            self._journal.refused(intent)
            return
        self._journal.end(seen, known)
        if not self._session.endswith(SQL):
            self._journal.end(intent)  # else nobody waited for PostgreSQL: its outcome stays open


@asynccontextmanager
async def _load(stores: list[Store], path: Path, dice: random.Random) -> AsyncIterator[None]:
    sessions = [f"{name}.{number}{SQL if number == 2 else ''}" for name in "abc" for number in range(3)]
    tasks = [Task(stores["abc".index(session[0])], path, session, random.Random(dice.random())) for session in sessions]
    running = [asyncio.create_task(task.work()) for task in tasks]
    try:
        yield
    finally:
        for one in running:
            if one.done():
                one.result()  # an error of its own is the test's
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)


# --- one round ------------------------------------------------------------------------------------------------


async def round_of(
    arena: Arena,
    journal: Path,
    fault: Callable[[Arena, random.Random], Awaitable[Fault]],
    dice: random.Random,
    *,
    after_s: float = 1.5,
    **overrides: Any,
) -> dict[str, int]:
    """Load, fault, a little more load, and the judgement; what was looked at. Violation, or an ordinary AssertionError
    when the round proves nothing."""
    settings = arena.settings(**overrides)
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(cenote.open(**settings)) for _ in range(2)]
        stores.append(await stack.enter_async_context(cenote.open(**settings, flush__enabled=False)))
        async with _outside(arena, stores[0]) as sql:
            await sql.audit()
        async with _load(stores, journal, dice):
            await asyncio.sleep(0.8 + dice.random())
            happened = await fault(arena, dice)
            async with asyncio.timeout(40):
                while _written_since(journal, happened.up) < AFTER_MIN:
                    await asyncio.sleep(0.25)
            await asyncio.sleep(after_s + dice.random())
        async with _outside(arena, stores[0]) as sql:
            compared = await at_rest(stores[0], sql)
    async with cenote.open(**settings) as store, _outside(arena, store) as sql:
        looked_at = await _judge(store, sql, journal, happened)
    return looked_at | {"compared": compared}


def _written_since(path: Path, moment: float) -> int:
    """Acknowledged writes that began since then. Until a stream that went back is mended there are none."""
    return history.acked(op for op in history.read(path) if op.begin > moment)


@asynccontextmanager
async def _outside(arena: Arena, store: Store) -> AsyncIterator[Tables]:
    link = await asyncpg.connect(arena.pg.url())
    try:
        yield Tables(link, store.config.names.schema("agents"))
    finally:
        await link.close()


async def at_rest(store: Store, sql: Tables) -> int:
    """I16: the stores that lived through it bring everything that KV holds into SQL; the number of entries compared."""
    wrong: list[str] = []

    async def agree() -> bool:
        try:
            wrong[:] = await _differences(store, sql)
        except cenote.UnavailableError as error:
            wrong[:] = [str(error)]
        return not wrong

    try:
        await eventually(agree, "I1, I16")
    except Violation as violation:
        raise Violation(f"{violation}: KV and SQL do not agree: {wrong[:3]}") from None
    compared = len([message async for message in store._core.stream.live()])
    assert compared, "KV is empty: there was nothing to compare"
    return compared


async def _differences(store: Store, sql: Tables) -> list[str]:
    core, found = store._core, []
    rows = {
        (row["agent_id"], row["key"]): row
        for row in await sql.link.fetch(
            f"SELECT agent_id, key, epoch, version, deleted, value::text FROM {sql.schema}.state"
        )
    }
    async for message in core.stream.live():
        token, key_token = core.split(message.subject)
        try:
            place = (keys.decode_agent(token).id, keys.sql_key(keys.decode_token(key_token)))
        except CodecError:
            continue  # an entry of our own
        stored, row = entries.from_message(message, core.epochs), rows.get(place)
        if row is None:
            if stored.version != entries.ABSENT.version:
                found.append(f"{place[1]} at {stored.version} is not in SQL")
        elif (row["epoch"], row["version"]) != tuple(stored.version) or row["deleted"] != stored.deleted:
            found.append(f"{place[1]} is at {stored.version} in KV and at {row['epoch']}.{row['version']} in SQL")
        elif not stored.deleted and json.loads(row["value"]) != values.decode(stored.codec, stored.body):
            found.append(f"{place[1]} at {stored.version} has two values")
    return found


async def _judge(store: Store, sql: Tables, path: Path, happened: Fault) -> dict[str, int]:
    await store.flush(20)
    written = sorted({op.key for op in history.read(path)})
    await _read_all(store, written, history.Journal(path, "judge.kv"))
    await evict_all(store)
    async with cenote.open(**_reopened(store)) as other:
        await _read_all(other, written, history.Journal(path, "judge.evicted"))
    changes = await sql.demand_monotonic()
    found = [_seen_after(op, happened) for op in history.read(path) if not _in_between(op, happened)]
    wrong = history.violations(found, lag_s=L1_LAG_S, exact=("judge",))
    demand(not wrong, f"I1, I2, I4: {len(wrong)} violations: {wrong[:3]}")
    return {"changes": changes, "lost": sum(op.lost for op in found), **_weigh(found, happened)}


def _reopened(store: Store) -> dict[str, Any]:
    kv, sql = store.config.kv, store.config.sql
    assert kv.url is not None
    assert kv.password is not None
    assert sql.url is not None
    return {
        "kv": kv.url.get_secret_value(), "kv__user": kv.user, "kv__password": kv.password.get_secret_value(),
        "sql": sql.url.get_secret_value(), "namespace": store.config.namespace, "flush__drain_ms": 0,
    }  # fmt: skip


async def _read_all(store: Store, written: list[str], journal: history.Journal) -> None:
    for key in written:
        intent = journal.begin("read", key)
        journal.end(intent, await store.agent(AGENT).get(key))


def _in_between(op: history.Op, happened: Fault) -> bool:
    """A read while the servers were being exchanged may have seen either life."""
    return op.kind == "read" and op.begin < happened.up and op.end > happened.down


def _seen_after(op: history.Op, happened: Fault) -> history.Op:
    """An acknowledged write that neither side surely held at the fault is lost; and what a session saw of a lost tail
    binds nobody, so it ends with the fault."""
    if op.begin > happened.up:
        return op._replace(session=f"{op.session}'")
    back_to = happened.kv_back_to
    if op.kind != "write" or back_to is None or op.end < back_to or op.end > happened.up:
        return op
    in_sql = op.session.endswith(SQL) and (happened.sql_back_to is None or op.end < happened.sql_back_to)
    return op if in_sql else op._replace(lost=True)


def _weigh(found: list[history.Op], happened: Fault) -> dict[str, int]:
    """A round in which nothing was at stake proves nothing."""
    writes = [op for op in found if op.kind == "write" and op.end < history.FOREVER]
    back_to = min(moment for moment in (happened.kv_back_to, happened.sql_back_to) if moment is not None)
    weight = {
        "before": sum(op.end < back_to for op in writes),
        "between_in_sql": sum(back_to < op.end < happened.down and op.session.endswith(SQL) for op in writes),
        "between": sum(back_to < op.end < happened.down for op in writes),
        "after": sum(op.begin > happened.up for op in writes),
        "deletes": sum(op.value is None for op in writes),
        "reads_after": sum(op.kind == "read" and op.begin > happened.up for op in found),
    }
    assert all(weight.values()), f"this proves nothing: {weight}"
    return weight
