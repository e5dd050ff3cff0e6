"""Finished tasks leave the queue, and nobody who asks for them notices."""

import asyncio
import json
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

import cenote
from cenote.model.uuid7 import uuid7
from cenote.repositories.tasks_upkeep import Upkeep
from cenote.sql import tasks as table
from cenote.store import Store
from cenote.testing import TestServers


async def archive(store: Store) -> None:
    """What the flusher does, for tasks of whatever age."""
    await Upkeep(store._core, archive_after_s=0).tend()


async def places(store: Store) -> tuple[int, int]:
    """How many tasks are in the queue and in the archive."""
    schema = store.config.names.schema("tasks")
    rows = await store._core.db.fetch(
        f"SELECT (SELECT count(*) FROM {schema}.queue), (SELECT count(*) FROM {schema}.archive)"
    )
    return rows[0][0], rows[0][1]


async def test_an_archived_task_is_as_it_was(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    payload = {"text": "a\x00", "n": 1}
    first = await tasks.add("dive", payload, priority=4, metadata={"who": "Ada\x00"}, dedupe_key="cave")
    (claimed,) = await tasks.claim("dive")
    (done,) = await tasks.complete(claimed, {3, 4})
    await tasks.add("dive", "fails", priority=3)
    failed = await tasks.fail((await tasks.claim("dive"))[0], "no light", retry=False)
    cancelled = await tasks.cancel(await tasks.add("dive", "cancelled", dedupe_key="cave"))
    await tasks.add("dive", "late", expires_in=0.001)
    waits = await tasks.add("climb")
    await tasks.add("swim")
    await tasks.claim("swim")
    await asyncio.sleep(0.01)
    await archive(cenote_store)  # expires what is late, and has it, too

    assert await places(cenote_store) == (2, 4)
    assert [await tasks.get(one.id) for one in (done, failed, cancelled)] == [done, failed, cancelled]
    everything = (await tasks.list()).items
    assert [task.status for task in everything] == ["done", "failed", "cancelled", "expired", "pending", "running"]
    assert (await tasks.list(status="failed")).items == [failed]
    assert (await tasks.list(where={"n": 1})).items == [done]
    assert {n for n in (await tasks.counts()).values() if n} == {1}
    assert (await tasks.complete(claimed))[0].finished_at == done.finished_at
    with pytest.raises(cenote.ConflictError, match="not yours"):
        await tasks.complete([claimed, unknown(claimed)])
    for verb in (tasks.cancel, tasks.replay):
        with pytest.raises(cenote.ConflictError, match="the task is done"):
            await verb(done)

    assert (await tasks.add("dive", payload, task_id=first.id)).finished_at == done.finished_at
    with pytest.raises(cenote.AlreadyExistsError, match="another task has it"):
        await tasks.add("dive", "other", task_id=first.id)
    live = await tasks.add("dive", "later", dedupe_key="cave")
    assert live.id not in (first.id, cancelled.id)
    with pytest.raises(cenote.AlreadyExistsError):
        await tasks.replay(cancelled)
    await tasks.cancel(live)
    for one in (failed, cancelled):
        again = await tasks.replay(one)
        assert (again.id, again.status, again.attempts, again.payload) == (one.id, "pending", 0, one.payload)
        assert await tasks.replay(one) == again
    assert (await tasks.get(waits.id)).status == "pending"
    assert await places(cenote_store) == (5, 2)


def unknown(claimed: cenote.Task) -> cenote.Task:
    """A task that is not there, in the hands of the same worker."""
    return cenote.Task(**{name: getattr(claimed, name) for name in claimed.__struct_fields__} | {"id": uuid4()})


async def test_an_id_is_used_once_whatever_moves(cenote_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction cannot see what was added, done and archived after its snapshot: one that may be older than an
    archived task adds nothing under a known id."""
    tasks, db = cenote_store.tasks, cenote_store._core.db
    known = uuid7()

    async def late(tx: cenote.Transaction) -> None:
        await tx.fetchval("SELECT 1")  # here it takes its snapshot
        await tasks.add("dive", 1, task_id=known)
        await tasks.complete(await tasks.claim("dive"))
        await archive(cenote_store)
        monkeypatch.setattr(table, "_ADDING_MAX", timedelta(0))  # as if it were half a minute later
        await tasks.add("dive", 1, task_id=known, tx=tx)

    with pytest.raises(cenote.OutcomeUnknownError, match="too old to tell"):
        await cenote_store.transact(late)
    everything = f"{cenote_store.config.names.schema('tasks')}.everything"
    assert await db.fetchval(f"SELECT count(*) FROM {everything} WHERE task_id = $1", known) == 1


async def test_pages_have_each_task_once_while_tasks_move(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    added = await tasks.add_many([{"task_type": "dive", "payload": n} for n in range(600)])
    ended = asyncio.Event()

    async def work() -> None:
        while found := await tasks.claim("dive", limit=20):
            await tasks.complete(found)
        ended.set()

    async def move() -> None:
        while not ended.is_set():
            await archive(cenote_store)
        await archive(cenote_store)

    async def read() -> int:
        seen, cursor = list[UUID](), None
        while True:
            page = await tasks.list(limit=37, cursor=cursor)
            seen += [task.id for task in page.items]
            assert sum((await tasks.counts()).values()) == 600
            if (cursor := page.next) is None:
                break
        assert seen == [task.id for task in added]
        return 1

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        group.create_task(move())
        rounds = 0
        while not ended.is_set():
            rounds += await read()
    await read()
    assert await places(cenote_store) == (0, 600)


async def test_archived_tasks_leave_after_their_retention(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(), tasks__retention_s=1) as store:
        done = await store.tasks.add("dive")
        await store.tasks.complete(await store.tasks.claim("dive"))
        await archive(store)
        assert await places(store) == (0, 1)
        await asyncio.sleep(1)
        await archive(store)
        with pytest.raises(cenote.NotFoundError):
            await store.tasks.get(done.id)


async def test_what_a_claim_and_a_finish_write(cenote_store: Store) -> None:
    """So many records and bytes of the write-ahead log for a task: a new index would be seen here."""
    tasks, db = cenote_store.tasks, cenote_store._core.db
    await tasks.add_many([{"task_type": "dive", "payload": n} for n in range(300)])
    await tasks.complete(await tasks.claim("dive", limit=100))  # the pages' first change is written whole
    async with db.connection() as con:
        token, queue = uuid4(), f"{cenote_store.config.names.schema('tasks')}.queue"

        async def written(name: str, *arguments: object) -> tuple[float, float]:
            text = (await con.fetch(f"EXPLAIN (ANALYZE, WAL, FORMAT JSON) {db.queries[name]}", *arguments))[0][0]
            plan = json.loads(text)[0]["Plan"]
            return plan["WAL Records"] / 100, plan["WAL Bytes"] / 100

        transaction = con.transaction()
        await transaction.start()
        claim, claim_bytes = await written("claim_tasks", ["dive"], 100, token, "me", timedelta(minutes=1))
        ids = [row[0] for row in await con.fetch(f"SELECT task_id FROM {queue} WHERE token = $1", token)]
        finish, finish_bytes = await written("complete_tasks", ids, token, None, None)
        await transaction.rollback()
    assert len(ids) == 100
    assert 3 <= claim <= 4.5  # the lock, the new version, two indexes; now and then a page is split
    assert 2 <= finish <= 4.2  # the new version, two indexes; now and then a page is cleaned
    assert claim_bytes + finish_bytes <= 750  # 670 of them; another index adds 80 and more


async def test_a_claim_and_a_finish_are_a_statement_each(cenote_servers: TestServers) -> None:
    """Nothing else is said to PostgreSQL, and a connection is at hand between them: the pool is not asked."""
    async with cenote.open(**cenote_servers.fresh(sql__pool_min=1, sql__pool_max=1, flush__enabled=False)) as store:
        tasks, db, said = store.tasks, store._core.db, list[str]()
        await tasks.add_many([{"task_type": "dive", "payload": n} for n in range(220)])
        await tasks.complete(await tasks.claim("dive", limit=10))

        async def listen(query: asyncpg.connection.LoggedQuery) -> None:
            said.append(query.query)

        async with db.connection() as con:
            con.add_query_logger(listen)
        for _ in range(2):
            await tasks.complete(await tasks.claim("dive", limit=100))
        async with db.connection() as con:
            con.remove_query_logger(listen)
        await asyncio.sleep(0)
        assert said == [db.queries["claim_tasks"], db.queries["complete_tasks"]] * 2
        assert (await tasks.counts("dive"))["done"] == 210
