"""What each isolation level prevents: the anomalies of Hermitage (Martin Kleppmann's collection, after Adya's thesis of
1999), each as live transactions of `store.transact` that take their steps in a fixed order.

The table here is the one of docs/transactions.md; `make judge` runs it on another PostgreSQL.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import cenote
from cenote import Isolation, Transaction

PAGE = Path(__file__).parents[2] / "docs" / "transactions.md"
LEVELS = (Isolation.READ_COMMITTED, Isolation.REPEATABLE_READ, Isolation.SERIALIZABLE)


class Refused(Exception):
    """PostgreSQL has asked to run the transaction again, which the scene does not."""


class Actor:
    """One transaction, which takes a step when told to."""

    def __init__(self, store: cenote.Store, table: str, isolation: Isolation) -> None:
        self._table = table
        self._steps: asyncio.Queue[tuple[str, asyncio.Future[Any]] | None] = asyncio.Queue()
        self._runs = 0
        self.pid = 0
        self._begun = asyncio.Event()
        self.task = asyncio.create_task(store.transact(self._play, isolation=isolation))

    async def begun(self) -> None:
        await self._begun.wait()

    async def _play(self, tx: Transaction) -> None:
        self._runs += 1
        if self._runs > 1:
            raise Refused  # at COMMIT
        self.pid = tx._con.get_server_pid()  # asked of nobody: the first statement takes the snapshot
        self._begun.set()
        while (step := await self._steps.get()) is not None:
            query, answer = step
            try:
                answer.set_result([tuple(row) for row in await tx.fetch(query.replace("test", self._table))])
            except cenote.CenoteError as error:
                answer.set_exception(Refused() if error.code == "SERIALIZATION_ERROR" else error)
                raise Refused from error

    def start(self, query: str) -> asyncio.Future[Any]:
        """Take a step that may have to wait."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._steps.put_nowait((query, answer))
        return answer

    async def does(self, query: str) -> list[tuple[Any, ...]]:
        return list(await self.start(query))

    async def commit(self) -> None:
        self._steps.put_nowait(None)
        await self.task

    async def abort(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    async def leave(self) -> None:
        if not self.task.done():
            await self.abort()
        elif not self.task.cancelled():
            self.task.exception()


class Scene:
    """Three actors over one small table."""

    def __init__(self, store: cenote.Store, table: str, isolation: Isolation) -> None:
        self._store = store
        self.one, self.two, self.three = (Actor(store, table, isolation) for _ in range(3))

    async def stuck(self, actor: Actor) -> None:
        """Wait until it waits for a lock."""
        query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"
        while not await self._store._core.db.fetchval(query, actor.pid):
            await asyncio.sleep(0.001)


Values = list[tuple[Any, ...]]
ALL = "SELECT id, value FROM test ORDER BY id"


def value(number: int) -> str:
    return f"SELECT value FROM test WHERE id = {number}"


def put(number: int, what: int | str) -> str:
    return f"UPDATE test SET value = {what} WHERE id = {number}"


async def g0(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does(put(1, 11))
    late = s.two.start(put(1, 12))
    await s.stuck(s.two)
    await s.one.does(put(2, 21))
    await s.one.commit()
    await late
    await s.two.does(put(2, 22))
    await s.two.commit()
    return [row[1] for row in await final()] in ([11, 21], [12, 22])


async def g1a(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does(put(1, 101))
    first = await s.two.does(value(1))
    await s.one.abort()
    return [first, await s.two.does(value(1))] == [[(10,)], [(10,)]]


async def g1b(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does(put(1, 101))
    first = await s.two.does(value(1))
    await s.one.does(put(1, 11))
    await s.one.commit()
    return (101,) not in first + await s.two.does(value(1))


async def g1c(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does(put(1, 11))
    await s.two.does(put(2, 22))
    seen = await s.one.does(value(2)), await s.two.does(value(1))
    return seen != ([(22,)], [(11,)])


async def otv(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does(put(1, 11))
    await s.one.does(put(2, 19))
    late = s.two.start(put(1, 12))
    await s.stuck(s.two)
    await s.one.commit()
    seen = await s.three.does(value(1))
    await late
    await s.two.does(put(2, 18))
    seen += await s.three.does(value(2))
    return seen == [(11,), (19,)]


async def pmp(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does("SELECT id FROM test WHERE value = 30")
    await s.two.does("INSERT INTO test VALUES (3, 30)")
    await s.two.commit()
    return await s.one.does("SELECT id FROM test WHERE value % 3 = 0") == []


async def pmp_write(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does("UPDATE test SET value = value + 10")
    await s.two.does(ALL)
    late = s.two.start("DELETE FROM test WHERE value = 20")
    await s.stuck(s.two)
    await s.one.commit()
    await late
    return await s.two.does("SELECT id FROM test WHERE value = 20") == []


async def p4(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does(value(1))
    await s.two.does(value(1))
    await s.one.does(put(1, 11))
    late = s.two.start(put(1, 11))
    await s.stuck(s.two)
    await s.one.commit()
    await late
    await s.two.commit()
    return False


async def g_single(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does(value(1))
    await s.two.does(put(1, 12))
    await s.two.does(put(2, 18))
    await s.two.commit()
    return await s.one.does(value(2)) == [(20,)]


async def g_single_predicate(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does("SELECT id FROM test WHERE value % 5 = 0")
    await s.two.does("UPDATE test SET value = 12 WHERE value = 10")
    await s.two.commit()
    return await s.one.does("SELECT id FROM test WHERE value % 3 = 0") == []


async def g_single_write(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does(value(1))
    await s.two.does(put(1, 12))
    await s.two.does(put(2, 18))
    await s.two.commit()
    await s.one.does("DELETE FROM test WHERE value = 20")
    await s.one.commit()
    return False


async def g2_item(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does(ALL)
    await s.two.does(ALL)
    await s.one.does(put(1, 11))
    await s.two.does(put(2, 21))
    await s.one.commit()
    await s.two.commit()
    return False


async def g2(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does("SELECT id FROM test WHERE value % 3 = 0")
    await s.two.does("SELECT id FROM test WHERE value % 3 = 0")
    await s.one.does("INSERT INTO test VALUES (3, 30)")
    await s.two.does("INSERT INTO test VALUES (4, 42)")
    await s.one.commit()
    await s.two.commit()
    return False


async def g2_two_edges(s: Scene, final: Callable[[], Awaitable[Values]]) -> bool:
    await s.one.does(ALL)
    await s.two.does(put(2, "value + 5"))
    await s.two.commit()
    await s.three.does(ALL)
    await s.three.commit()
    await s.one.does(put(1, 0))
    await s.one.commit()
    return False


SCENES = {
    "G0": g0, "G1a": g1a, "G1b": g1b, "G1c": g1c, "OTV": otv, "PMP": pmp, "PMP, write": pmp_write, "P4": p4,
    "G-single": g_single, "G-single, predicates": g_single_predicate, "G-single, write": g_single_write,
    "G2-item": g2_item, "G2": g2, "G2, two edges": g2_two_edges,
}  # fmt: skip


def promised() -> dict[str, list[bool]]:
    """The table of the page: for each anomaly, which level prevents it."""
    rows = re.findall(r"^\| \*\*(.+?)\*\* .*? \| (yes|no) \| (yes|no) \| (yes|no) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: [cell == "yes" for cell in cells] for name, *cells in rows}


@pytest.mark.parametrize("name", SCENES)
async def test_a_level_prevents_what_the_page_says(cenote_store: cenote.Store, name: str) -> None:
    table = f"{cenote_store.config.names.schema('agents')}.test"
    db = cenote_store._core.db
    found = []
    for level in LEVELS:
        await db.execute(f"DROP TABLE IF EXISTS {table}")
        await db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, value int)")
        await db.execute(f"INSERT INTO {table} VALUES (1, 10), (2, 20)")
        scene = Scene(cenote_store, table, level)
        actors = (scene.one, scene.two, scene.three)
        await asyncio.gather(*(actor.begun() for actor in actors))

        async def final() -> Values:
            return [tuple(row) for row in await db.fetch(ALL.replace("test", table))]

        try:
            found.append(await SCENES[name](scene, final))
        except Refused:
            found.append(True)  # one of the two did not happen
        finally:
            for actor in actors:
                await actor.leave()
    assert found == promised()[name]


def test_the_page_leaves_none_out() -> None:
    assert list(promised()) == list(SCENES)
