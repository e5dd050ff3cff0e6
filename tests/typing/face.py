"""Never run: mypy reads it as a user's program, so the types that the face promises are a contract."""

from contextlib import aclosing
from typing import assert_type

import cenote


async def a_program() -> None:
    async with cenote.open() as store:
        assert_type(store, cenote.Store)
        scout = store.agent("scout-7")
        assert_type(scout, cenote.AgentState)
        receipt = await scout.put("plan", {"goal": "map the cave"})
        assert_type(receipt, cenote.Receipt)
        assert_type(receipt.version, cenote.Version)
        assert_type(await receipt.durable(), cenote.Receipt)
        assert_type((await scout.entry("plan")).version, cenote.Version)
        assert_type(await scout.delete("plan", if_version=receipt), cenote.Receipt)
        async with aclosing(store.tasks.work("survey")) as jobs:
            async for job in jobs:
                assert_type(job.task, cenote.Task)
        async with aclosing(store.messages.subscribe(to="scout-7")) as messages:
            async for message in messages:
                assert_type(message, cenote.Message)
        session = await store.sessions.create({"user": "ada"})
        assert_type(await store.sessions.find(session.id), cenote.Session)
        assert_type(await store.cache.get_or_load("depth", depth), int)
        assert_type(await store.data("TASK_INFO").search({"depth_m": 40}), list[cenote.Match])


async def depth() -> int:
    return 40
