"""Tasks: what the verbs promise, on real servers."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

import cenote
from cenote import limits
from cenote.model.uuid7 import uuid7
from cenote.repositories.tasks_upkeep import Upkeep
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, reached

HOSTILE = ["'; DROP TABLE tasks.queue; --", "a\x00b", "\ud800", "\x1a0000", "% _ \\ {tasks} $1", "水" * 50]
SOON = {"lease": 0.2}


async def one(store: Store, *types: str, **given: Any) -> cenote.Task:
    """A claimed task; waits for one."""
    found: list[cenote.Task] = []

    async def claimed() -> bool:
        found.extend(await store.tasks.claim(*types, **given))
        return bool(found)

    await reached(claimed, f"a task of {types}")
    return found[0]


async def status(store: Store, task: cenote.Task) -> str:
    return (await store.tasks.get(task.id)).status


# --- adding -------------------------------------------------------------------------------------------------


async def test_what_comes_back_is_what_was_added(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    payload = {"at": datetime(2026, 1, 2, tzinfo=UTC), "set": {1, 2}, "bytes": b"\0", "big": 10**30, "text": "a\x00"}
    added = await tasks.add("dive", payload, priority=-7, metadata={"who": "Ada\x00"}, attempts_max=3)
    assert (added.payload, added.metadata, added.status, added.priority) == (payload, {"who": "Ada\x00"}, "pending", -7)
    assert await tasks.get(added.id) == added
    (claimed,) = await tasks.claim("dive", worker="w\x00")
    assert (claimed.payload, claimed.worker, claimed.attempts, claimed.status) == (payload, "w\x00", 1, "running")
    (done,) = await tasks.complete([claimed], result={3, 4})
    assert await tasks.get(added.id) == done
    assert (done.status, done.result) == ("done", {3, 4})


async def test_adding_again_adds_nothing(cenote_store: Store) -> None:
    tasks, known = cenote_store.tasks, uuid7()
    first = await tasks.add("dive", {"n": 1}, task_id=known)
    assert await tasks.add("dive", {"n": 1}, task_id=known) == first
    with pytest.raises(cenote.AlreadyExistsError, match="another task has it"):
        await tasks.add("dive", {"n": 2}, task_id=known)
    many = await tasks.add_many([{"task_type": "dive", "payload": n, "task_id": uuid7()} for n in range(3)])
    again = await tasks.add_many([{"task_type": "dive", "payload": t.payload, "task_id": t.id} for t in many])
    assert again == many
    assert (await tasks.counts("dive"))["pending"] == 4


async def test_a_dedupe_key_stands_for_one_live_task(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    first = await tasks.add("dive", 1, dedupe_key="cave-1")
    assert await tasks.add("dive", 2, dedupe_key="cave-1") == first
    assert (await tasks.add("climb", 3, dedupe_key="cave-1")).id != first.id
    running = await one(cenote_store, "dive")
    assert (await tasks.add("dive", 4, dedupe_key="cave-1")).id == running.id
    await tasks.complete(running)
    later = await tasks.add("dive", 5, dedupe_key="cave-1")
    assert later.id != first.id
    await tasks.cancel(later)
    taken = await tasks.add("dive", 6, dedupe_key="cave-1")
    with pytest.raises(cenote.AlreadyExistsError):
        await tasks.replay(later)
    assert await status(cenote_store, taken) == "pending"


async def test_a_task_of_a_transaction_is_there_with_its_commit(cenote_store: Store) -> None:
    tasks, known = cenote_store.tasks, uuid7()

    async def adds(tx: cenote.Transaction) -> cenote.Task:
        return await tasks.add("dive", 1, task_id=known, tx=tx)

    async def fails(tx: cenote.Transaction) -> None:
        await adds(tx)
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - it is our own
        await cenote_store.transact(fails)
    with pytest.raises(cenote.NotFoundError, match="there is no such task"):
        await tasks.get(known)
    added = await cenote_store.transact(adds)
    assert await tasks.get(known) == added


# --- claiming -----------------------------------------------------------------------------------------------


async def test_the_most_urgent_first_and_nothing_before_its_time(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    await tasks.add("dive", "ahead", priority=99, delay=3600)
    await tasks.add("dive", "tomorrow", priority=99, run_at=datetime.now(UTC) + timedelta(days=1))
    await tasks.add("dive", "low", priority=-1)
    for n in range(3):
        await tasks.add("dive", f"plain-{n}")
    await tasks.add("climb", "high", priority=5)
    await tasks.add("dive", "early", run_at=datetime.now(UTC) - timedelta(seconds=5))
    found = await tasks.claim("dive", "climb", "nothing", limit=10)
    assert [task.payload for task in found] == ["high", "early", "plain-0", "plain-1", "plain-2", "low"]
    assert await tasks.claim("dive", "climb") == []


async def test_many_workers_share_without_overlap(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    await tasks.add_many([{"task_type": "dive", "payload": n} for n in range(200)])
    seen: list[int] = []

    async def work() -> None:
        while found := await tasks.claim("dive", limit=7):
            seen.extend(task.payload for task in found)
            await tasks.complete(found)

    await asyncio.gather(*(work() for _ in range(5)))
    assert sorted(seen) == list(range(200))
    assert (await tasks.counts())["done"] == 200


async def test_a_late_worker_is_refused(cenote_store: Store) -> None:
    """The fencing token: whoever lost his lease finishes nothing, in a transaction or not."""
    tasks = cenote_store.tasks
    await tasks.add("dive")
    late = await one(cenote_store, "dive", **SOON)
    next_one = await one(cenote_store, "dive")
    assert (next_one.id, next_one.attempts) == (late.id, 2)
    assert next_one.token != late.token
    for late_word in (
        lambda: tasks.complete(late),
        lambda: tasks.fail(late, "too late"),
        lambda: cenote_store.transact(lambda tx: tasks.complete(late, tx=tx)),
    ):
        with pytest.raises(cenote.ConflictError, match="not yours any more"):
            await late_word()
    await tasks.release(late)
    assert await tasks.heartbeat(late) == []
    assert await status(cenote_store, late) == "running"
    done = await tasks.complete(next_one, "by the second")
    assert await tasks.complete(next_one) == [replace(done[0], result=None)]
    with pytest.raises(cenote.ConflictError):
        await tasks.complete(late)
    assert (await tasks.get(late.id)).result == "by the second"


async def test_an_expired_lease_finishes_nothing_even_where_nobody_else_came(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    await tasks.add_many([{"task_type": "dive", "payload": n} for n in range(2)])
    kept, lost = await tasks.claim("dive", limit=2)
    (kept,) = await tasks.heartbeat(kept, lease=60)
    queue = f"{cenote_store.config.names.schema('tasks')}.queue"
    await cenote_store._core.db.execute(f"UPDATE {queue} SET lease_until = now() WHERE task_id = $1", lost.id)
    with pytest.raises(cenote.ConflictError, match=str(lost.id)):
        await tasks.complete([kept, lost])
    assert [await status(cenote_store, task) for task in (kept, lost)] == ["done", "running"]


async def test_what_is_lost_too_often_is_a_dead_letter(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    added = await tasks.add("dive", attempts_max=2)
    for _ in range(2):
        await one(cenote_store, "dive", lease=0.1)

    async def dead() -> bool:
        assert await tasks.claim("dive") == []
        return await status(cenote_store, added) == "failed"

    await reached(dead, "a dead letter")
    (letter,) = await tasks.list(status="failed")
    assert letter.last_error == "the lease of its last worker ran out"
    await tasks.replay(letter.id)
    again = await one(cenote_store, "dive")
    assert (again.id, again.attempts) == (added.id, 1)


# --- failing, cancelling, expiring --------------------------------------------------------------------------


async def test_a_failed_task_comes_again_later_and_later(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(), tasks__retry_ms=60_000, tasks__retry_ms_max=180_000) as store:
        tasks = store.tasks
        added = await tasks.add("dive", attempts_max=4)
        for least_s, most_s in ((30, 60), (60, 120), (90, 180)):
            claimed, before = await one(store, "dive"), datetime.now(UTC)
            failed = await tasks.fail(claimed, ValueError("no light"))
            assert (failed.status, failed.last_error) == ("retry", "ValueError: no light")
            assert failed.run_at - before >= timedelta(seconds=least_s)
            assert failed.run_at - datetime.now(UTC) <= timedelta(seconds=most_s)
            assert await tasks.claim("dive") == []
            await store._core.db.execute(f"UPDATE {store.config.names.schema('tasks')}.queue SET run_at = now()")
        dead = await tasks.fail(await one(store, "dive"), "no light")
        assert (dead.status, dead.attempts) == ("failed", 4)
        assert dead.finished_at is not None
        assert await tasks.get(added.id) == dead
        at_once = await tasks.add("dive")
        assert (await tasks.fail(await one(store, "dive"), "never", retry=False)).status == "failed"
        assert {task.id for task in await tasks.list(status="failed")} == {added.id, at_once.id}


async def test_a_cancelled_task_is_done_by_nobody(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    waits, runs = await tasks.add("dive"), await tasks.add("dive", priority=1)
    running = await one(cenote_store, "dive")
    assert running.id == runs.id
    for task in (waits, runs, runs):
        assert (await tasks.cancel(task.id)).status == "cancelled"
    assert await tasks.claim("dive") == []
    with pytest.raises(cenote.ConflictError):
        await tasks.complete(running)
    with pytest.raises(cenote.NotFoundError, match="there is no such task"):
        await tasks.cancel(uuid4())
    done = await tasks.add("climb")
    await tasks.complete(await one(cenote_store, "climb"))
    for verb in (tasks.cancel, tasks.replay):
        with pytest.raises(cenote.ConflictError, match="the task is done"):
            await verb(done)


async def test_what_is_too_late_expires(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    claimed_late = await tasks.add("dive", expires_in=0.001)
    nobody_asks = await tasks.add("climb", expires_in=timedelta(milliseconds=1))
    in_time = await tasks.add("dive", expires_in=3600)
    await asyncio.sleep(0.01)
    assert [task.id for task in await tasks.claim("dive", limit=5)] == [in_time.id]
    assert await status(cenote_store, claimed_late) == "expired"
    assert await status(cenote_store, nobody_asks) == "pending"
    await Upkeep(cenote_store._core).tend()
    assert await status(cenote_store, nobody_asks) == "expired"
    assert (await tasks.replay(nobody_asks)).expires_at is None


async def test_finished_tasks_leave_after_their_retention(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(), tasks__retention_s=0.05) as store:
        done, waits = await store.tasks.add("dive", priority=1), await store.tasks.add("dive")
        await store.tasks.complete(await one(store, "dive"))
        await asyncio.sleep(0.06)
        await Upkeep(store._core).tend()
        with pytest.raises(cenote.NotFoundError):
            await store.tasks.get(done.id)
        assert await status(store, waits) == "pending"


# --- lists --------------------------------------------------------------------------------------------------


async def test_lists_and_their_cursors(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    added = await tasks.add_many(
        [{"task_type": "dive" if n % 2 else "climb", "payload": {"n": n, "tags": ["even"] * (1 - n % 2)}}
         for n in range(25)]
    )  # fmt: skip
    found, cursor = [], None
    while True:
        page = await tasks.list(limit=10, cursor=cursor)
        found += page.items
        if page.next is None:
            break
        cursor = page.next
    assert found == added
    deep = await tasks.list(task_type="climb", where={"n": {"gt": 20}, "tags": {"contains": "even"}})
    assert [task.payload["n"] for task in deep] == [22, 24]
    assert [task.payload["n"] for task in await tasks.list(where={"n": 3})] == [3]
    assert cursor is not None
    for forged in (cursor[:-2] + "AA", "", "a\x00", "'; --", cenote_store.tasks._cursors.write("x")):
        with pytest.raises(cenote.NotFoundError, match="there is no such page"):
            await tasks.list(cursor=forged)
    with pytest.raises(cenote.NotFoundError, match="there is no such page"):
        await tasks.list(cursor=cursor, status="done")


# --- bad input ----------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"payload": "x" * limits.TASK_BYTES_MAX}, "payload: 1048578 bytes encoded; the limit is 1048576"),
    ({"payload": object()}, "payload: "),
    ({"metadata": {"m": "x" * limits.TASK_METADATA_BYTES_MAX}}, "metadata: 6"),
    ({"metadata": [1]}, "metadata: a mapping"),
    ({"run_at": datetime(2020, 1, 1, tzinfo=UTC)}, "run_at: 2020-01-01T00:00:00.00:00 is past"),
    ({"run_at": datetime(2040, 1, 1)}, "run_at: a datetime with a time zone"),
    ({"run_at": datetime(9999, 1, 1, tzinfo=UTC)}, "run_at: .* more than a century"),
    ({"run_at": datetime.now(UTC) + timedelta(1), "delay": 1}, "run_at, delay: give one"),
    ({"delay": -1}, "delay: "),
    ({"delay": float("nan")}, "delay: "),
    ({"expires_in": 0}, "expires_in: "),
    ({"expires_in": float("inf")}, "expires_in: "),
    ({"priority": 40_000}, "priority: an int from -32768 to 32767"),
    ({"priority": True}, "priority: an int"),
    ({"attempts_max": 0}, "attempts_max: an int from 1 to 1000"),
    ({"dedupe_key": ""}, "dedupe_key: 0 characters; 1 to 200"),
    ({"dedupe_key": "x" * 201}, "dedupe_key: 201 characters; 1 to 200"),
    ({"task_id": "no"}, "task_id: a UUID"),
]


async def test_bad_input_is_refused_and_named(cenote_store: Store) -> None:
    tasks: Any = cenote_store.tasks
    for given, words in BAD:
        with pytest.raises(cenote.RejectedError, match=words):
            await tasks.add("dive", **given)
    whole = await tasks.add("whole")
    calls = {
        "task_type: 51 characters; 1 to 50": lambda: tasks.add("x" * 51),
        "task_type: a str": lambda: tasks.add(7),
        "types: 0 of them": tasks.claim,
        "limit: 1 to 1000": lambda: tasks.claim("dive", limit=1001),
        "lease: ": lambda: tasks.claim("dive", lease=0),
        "status: 'nope'": lambda: tasks.list(status="nope"),
        "unknown|operator|near": lambda: tasks.list(where={"n": {"near": 1}}),
        "cursor: a str": lambda: tasks.list(cursor=7),
        "task: a Task": lambda: tasks.complete("dive"),
        "it was not claimed": lambda: tasks.complete(whole),
        r"tasks\[1\]\.priority": lambda: tasks.add_many([{"task_type": "a"}, {"task_type": "a", "priority": "x"}]),
        "'sql': a task has no such field": lambda: tasks.add_many([{"task_type": "a", "sql": 1}]),
        "same task_id": lambda: tasks.add_many([{"task_type": "a", "task_id": whole.id}] * 2),
        "10001 of them": lambda: tasks.add_many([{"task_type": "a"}] * 10_001),
        "taken together": lambda: tasks.add_many([{"task_type": "a", "payload": "x" * 1_000_000}] * 9),
    }
    for words, call in calls.items():
        with pytest.raises(cenote.RejectedError, match=words):
            await call()
    assert sum((await tasks.counts()).values()) == 1


async def test_hostile_texts_are_only_texts(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    for text in HOSTILE:
        kind = text[:50]
        added = await tasks.add(kind, {text: text}, dedupe_key=text, metadata={text: text})
        claimed = await one(cenote_store, kind, worker=text)
        assert (claimed.id, claimed.type, claimed.payload, claimed.worker) == (added.id, kind, {text: text}, text)
        failed = await tasks.fail(claimed, text, retry=False)
        assert failed.last_error == text
        assert (await tasks.list(task_type=kind, status="failed")).items == [failed]
        assert (await tasks.counts(kind))["failed"] == 1


# --- the loop -----------------------------------------------------------------------------------------------


async def test_a_loop_does_what_comes_and_what_fails_comes_again(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(), tasks__retry_ms=1, tasks__poll_ms=20) as store:
        await store.tasks.add_many([{"task_type": "dive", "payload": n} for n in range(5)])
        seen: list[int] = []
        async for job in store.tasks.work("dive", batch=3):
            async with job:
                seen.append(job.payload)
                if job.payload == 1 and job.task.attempts == 1:
                    raise ValueError("no light")
                job.result = -job.payload
            if len(seen) == 6:
                break
        assert sorted(seen) == [0, 1, 1, 2, 3, 4]
        rows = (await store.tasks.list(status="done")).items
        assert [(task.payload, task.result) for task in rows] == [(n, -n) for n in range(5)]


async def test_an_idle_loop_is_woken_by_a_commit(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(), tasks__poll_ms=60_000) as store, another(store) as other:
        jobs = aiter(store.tasks.work("dive"))
        for number in range(3):
            waiting = asyncio.ensure_future(anext(jobs))
            await asyncio.wait([waiting], timeout=0.1)
            assert not waiting.done()
            if number == 1:
                await other.transact(lambda tx: other.tasks.add("dive", tx=tx))
            else:
                await other.tasks.add("dive")
            async with asyncio.timeout(10), await waiting:
                pass
        await jobs.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_a_loop_that_is_left_gives_back_what_it_has_not_begun(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    await tasks.add_many([{"task_type": "dive", "payload": n} for n in range(10)])
    jobs = tasks.work("dive", batch=10)
    async with await anext(jobs):
        assert (await tasks.counts())["running"] == 10
    await jobs.aclose()  # type: ignore[attr-defined]  # it is a generator
    counts = await tasks.counts()
    assert (counts["done"], counts["pending"], counts["running"]) == (1, 9, 0)
    assert {task.attempts for task in await tasks.list(status="pending")} == {0}


async def test_a_cancelled_body_gives_its_task_back(cenote_store: Store) -> None:
    tasks, begun = cenote_store.tasks, asyncio.Event()
    await tasks.add("dive")

    async def work() -> None:
        async for job in tasks.work("dive"):
            async with job:
                begun.set()
                await asyncio.sleep(60)

    worker = asyncio.create_task(work())
    await begun.wait()
    worker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await worker
    assert (await tasks.counts())["pending"] == 1


async def test_leases_are_kept_up_and_a_lost_one_is_told(cenote_store: Store) -> None:
    tasks = cenote_store.tasks
    added = await tasks.add("dive")
    jobs = tasks.work("dive", lease=1.5)
    async with await anext(jobs) as job:

        async def prolonged() -> bool:
            until, first = (await tasks.get(added.id)).lease_until, job.task.lease_until
            return until is not None and first is not None and until > first

        await reached(prolonged, "a longer lease")
        await tasks.cancel(added.id)
        await reached(lambda: job.lost, "the loss")
    await jobs.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert await status(cenote_store, added) == "cancelled"


async def test_a_job_is_finished_with_a_transaction(cenote_store: Store) -> None:
    """The effect and the end of the task are one commit; a transaction that fails leaves the task to be done again."""
    tasks = cenote_store.tasks
    await tasks.add("dive", attempts_max=1)
    jobs = tasks.work("dive")
    async with await anext(jobs) as job:

        async def effect(tx: cenote.Transaction) -> None:
            await tasks.add("effect", tx=tx)
            await job.complete("found", tx=tx)

        await cenote_store.transact(effect)
        assert await status(cenote_store, job.task) == "done"
        raise ValueError("after the end")
    await jobs.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert (await tasks.get(job.task.id)).result == "found"
    assert (await tasks.counts("effect"))["pending"] == 1


async def test_a_job_that_nobody_begins_is_a_mistake_and_comes_back(cenote_store: Store) -> None:
    await cenote_store.tasks.add("dive")
    with pytest.raises(cenote.RejectedError, match="async with job"):
        async for _ in cenote_store.tasks.work("dive"):
            pass
    assert (await cenote_store.tasks.counts())["pending"] == 1
