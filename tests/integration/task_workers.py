"""A real process that does tasks by the plain verbs: claim, and finish in one transaction with the effect.

It says on stdout that it is open, works until nothing is left, and prints how many it finished.
"""

import asyncio
import json
import os
import sys
from typing import Any

import cenote

BATCH = 50
TAKE_EFFECT = """
INSERT INTO public.effects (task, token)
SELECT q.task_id, q.token FROM {queue} AS q
 WHERE q.task_id = ANY ($1::uuid[]) AND q.token = $2
"""


async def work(given: dict[str, Any]) -> int:
    finished = 0
    async with cenote.open(**given["settings"]) as store:
        os.write(1, b"open\n")
        take_effect = TAKE_EFFECT.replace("{queue}", f"{store.config.names.schema('tasks')}.queue")
        while True:
            try:
                tasks = await store.tasks.claim("dive", limit=BATCH, lease=given["lease_s"])
            except cenote.UnavailableError:
                continue  # PostgreSQL is away
            if not tasks:
                counts = await store.tasks.counts("dive")
                if not counts["pending"] + counts["retry"] + counts["running"]:
                    return finished
                await asyncio.sleep(0.05)  # what the killed ones held comes back by its lease
                continue

            async def finish(tx: cenote.Transaction, tasks: list[cenote.Task] = tasks) -> None:
                await tx.execute(take_effect, [one.id for one in tasks], tasks[0].token)
                await store.tasks.complete(tasks, tx=tx)

            try:
                await store.transact(finish)
            except (cenote.UnavailableError, cenote.OutcomeUnknownError, cenote.ConflictError):
                continue  # not written, or not ours to know: what is not done comes back by its lease
            finished += len(tasks)


if __name__ == "__main__":
    print(asyncio.run(work(json.loads(sys.argv[1]))), flush=True)
