"""2.1 and 2.2 The schema: state is JSONB that SQL can query, and a function gives an agent's state at its start."""

import asyncio

import cenote


async def main() -> None:
    async with cenote.open() as store:
        await store.agent("scout-7").put("plan", {"goal": "map", "depth_m": 40}, durability="sql")
        await store.agent("scout-8").put("plan", {"goal": "dive", "depth_m": 90}, durability="sql")
        agents = store.config.names.schema("agents")  # `agents`, with the namespace before it

        async def deep(tx: cenote.Transaction) -> list[str]:
            rows = await tx.fetch(
                f"SELECT name FROM {agents}.state JOIN {agents}.registry USING (agent_id)"
                " WHERE key = 'plan' AND (value->>'depth_m')::int > $1",
                50,
            )
            return [row["name"] for row in rows]

        print(await store.transact(deep))  # ['scout-8']

        async def state(tx: cenote.Transaction) -> list[tuple[str, str]]:
            query = f"SELECT key, value FROM {agents}.hydrate_agent_state($1)"
            return [tuple(row) for row in await tx.fetch(query, store.agent("scout-7").id)]

        print(await store.transact(state))  # [('plan', '{"goal": "map", "depth_m": 40}')]
        print(await store.agent("scout-7").hydrate())  # Hydrated(keys=0, bytes=0)


asyncio.run(main())
