"""Claim and finish of tasks beside pgqueuer and procrastinate: alternating rounds on one PostgreSQL, one connection
each, durable commits, through everybody's own verbs. procrastinate fetches one job at a time.

    python -m venv /tmp/queues && /tmp/queues/bin/pip install cenote pgqueuer procrastinate
    /tmp/queues/bin/python benchmarks/task_queues.py
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import procrastinate
from pgqueuer.adapters.persistence.queries import Queries
from pgqueuer.ports.repository import EntrypointExecutionParameter
from procrastinate.jobs import Status
from procrastinate.schema import SchemaManager

import cenote

ROUNDS = 5
COUNTS = {1: 300, 10: 2_000, 100: 10_000}  # tasks of a round, by batch
PAYLOAD = {"module": "json.decoder", "depth": 3}
Round = Callable[[int, int], Awaitable[float]]


def of_cenote(store: cenote.Store) -> Round:
    async def run(batch: int, count: int) -> float:
        kind = f"t{uuid4().hex[:8]}"
        await store.tasks.add_many([{"task_type": kind, "payload": PAYLOAD} for _ in range(count)])
        await store._core.db.execute(f"ANALYZE {store.config.names.schema('tasks')}.queue")
        began, done = time.perf_counter(), 0
        while done < count:
            tasks = await store.tasks.claim(kind, limit=batch)
            await store.tasks.complete(tasks)
            done += len(tasks)
        return count / (time.perf_counter() - began)

    return run


def of_pgqueuer(con: asyncpg.Connection) -> Round:
    queries = Queries.from_asyncpg_connection(con)

    async def run(batch: int, count: int) -> float:
        me, kind = uuid4(), f"t{uuid4().hex[:8]}"
        await queries.enqueue([kind] * count, [b'{"module":"json.decoder","depth":3}'] * count, [0] * count)
        await con.execute("ANALYZE pgqueuer")
        began, done = time.perf_counter(), 0
        while done < count:
            jobs: list[Any] = await queries.dequeue(
                batch, {kind: EntrypointExecutionParameter(0)}, me, None, timedelta(seconds=30)
            )
            await queries.log_jobs([(job, "successful", None) for job in jobs])
            done += len(jobs)
        return count / (time.perf_counter() - began)

    return run


def of_procrastinate(app: procrastinate.App, worker_id: int) -> Round:
    async def run(_batch: int, count: int) -> float:
        kind = f"t{uuid4().hex[:8]}"
        await app.configure_task("noop", queue=kind).batch_defer_async(*[PAYLOAD] * count)
        await app.connector.execute_query_async("ANALYZE procrastinate_jobs")
        began = time.perf_counter()
        for _ in range(count):
            job = await app.job_manager.fetch_job([kind], worker_id)
            assert job is not None
            await app.job_manager.finish_job(job, Status.SUCCEEDED, delete_job=False)
        return count / (time.perf_counter() - began)

    return run


async def measured(rounds: dict[str, Round], batch: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in rounds}
    for number in range(ROUNDS + 1):
        for name in sorted(rounds, reverse=bool(number % 2)):
            speed = await rounds[name](batch, COUNTS[batch])
            if number:  # the first round warms up
                found[name].append(speed)
    return {name: statistics.median(speeds) for name, speeds in found.items()}


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="cenote-queues-") as home:
        async with cenote.open(
            embedded__data_dir=home, sql__pool_min=1, sql__pool_max=1, flush__enabled=False
        ) as store:
            await store.tasks.counts()
            dsn = sys.argv[1] if len(sys.argv) > 1 else store._core.db.config.url.get_secret_value()
            con = await asyncpg.connect(dsn)
            assert await con.fetchval("SHOW synchronous_commit") == "on"
            await Queries.from_asyncpg_connection(con).install()
            app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1, max_size=1))
            async with app.open_async():
                await SchemaManager(app.connector).apply_schema_async()
                worker_id = await app.job_manager.register_worker()
                ours, theirs = of_cenote(store), of_pgqueuer(con)
                for batch in COUNTS:
                    rounds = {"cenote": ours, "pgqueuer": theirs}
                    if batch == 1:
                        rounds["procrastinate"] = of_procrastinate(app, worker_id)
                    medians = await measured(rounds, batch)
                    best = max(speed for name, speed in medians.items() if name != "cenote")
                    words = ", ".join(f"{name} {speed:,.0f}/s" for name, speed in medians.items())
                    ratio = medians["cenote"] / best
                    print(f"batch {batch}: {words}; {ratio:.2f} x the better", flush=True)  # noqa: T201 - it is a script
            await con.close()


if __name__ == "__main__":
    asyncio.run(main())
