"""20,000 tasks, four worker processes, two of them killed, PostgreSQL bounced: every effect is there exactly
once, and so is every task, although the finished ones are archived meanwhile."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pg_server import PgServer, running_server

import cenote
from cenote.repositories.tasks_upkeep import Upkeep
from cenote.testing import TestServers

WORKERS, TASKS, EACH = 4, 20_000, 5_000
LEASE_S = 5.0


async def worker(settings: dict[str, Any]) -> Process:
    given = json.dumps({"settings": settings, "lease_s": LEASE_S})
    path = Path(__file__).with_name("task_workers.py")
    child = await asyncio.create_subprocess_exec(sys.executable, str(path), given, stdout=PIPE)
    assert child.stdout is not None
    assert await child.stdout.readline() == b"open\n"
    return child


async def bounced(server: PgServer) -> None:
    """A crash of PostgreSQL, and its recovery."""
    await asyncio.to_thread(server.stop, signal.SIGQUIT)
    await asyncio.to_thread(server.start)


@pytest.mark.judge
async def test_every_task_is_done_once(cenote_servers: TestServers) -> None:
    with running_server() as server:
        settings = cenote_servers.by_url(flush__enabled=False, flush__drain_ms=0)
        settings["sql"] = server.url()
        async with cenote.open(**settings) as store:
            db = store._core.db
            await db.execute("CREATE TABLE public.effects (task uuid PRIMARY KEY, token uuid NOT NULL)")
            for start in range(0, TASKS, EACH):
                await store.tasks.add_many([{"task_type": "dive", "payload": start + n} for n in range(EACH)])
            children = await asyncio.gather(*(worker(settings) for _ in range(WORKERS)))

            async def reached(count: int) -> None:
                while (await store.tasks.counts("dive"))["done"] < count:
                    with suppress(cenote.UnavailableError):  # a connection from before the crash
                        await Upkeep(store._core, archive_after_s=0).tend()  # no flusher is there to do it

            async with asyncio.timeout(40):
                await reached(TASKS // 10)
                children[0].kill()
                await reached(TASKS // 4)
                await bounced(server)
                await reached(TASKS // 2)
                children[1].kill()
                outs = [await child.communicate() for child in children]
            assert [child.returncode for child in children] == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
            assert sum(int(out) for out, _ in outs[2:]) > 0

            counts = await store.tasks.counts("dive")
            assert counts == dict.fromkeys(counts, 0) | {"done": TASKS}
            queue = f"{store.config.names.schema('tasks')}.everything"
            row = await db.fetchrow(
                "SELECT count(*), count(*) FILTER (WHERE e.token = q.token), count(*) FILTER (WHERE q.attempts > 1)"
                f" FROM public.effects AS e JOIN {queue} AS q ON q.task_id = e.task"
            )
            assert row is not None
            effects, by_the_last_holder, taken_again = row
            assert effects == by_the_last_holder == TASKS
            print(f"{TASKS} tasks, {taken_again} of them taken again from those who were killed or cut off")
