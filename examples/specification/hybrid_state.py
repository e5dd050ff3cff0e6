"""1.3 Hybrid storage: a write goes to the fast KV and flows to PostgreSQL; a read falls back to PostgreSQL."""

import asyncio

import cenote
from cenote.testing import evict_now


async def main() -> None:
    async with cenote.open() as store:  # flush.threshold_count=50 dirty keys, or flush.interval_ms=20
        agent = store.agent("scout-7")

        receipt = await agent.put("plan", {"step": 1})  # acknowledged by KV
        print(receipt.durability)  # kv
        await receipt.durable()  # PostgreSQL has it
        print(receipt.durability)  # sql

        await evict_now(store)  # as after state.ttl_s of idleness: KV lets go of what PostgreSQL has
        entry = await agent.entry("plan")
        print(entry.value, entry.tier.name)  # {'step': 1} RELATIONAL_DB
        print((await store.stats()).hydrated)  # 1


asyncio.run(main())
