"""4.1 Repositories: save, find, update, delete; an agent is written once, and flows to PostgreSQL like all state."""

import asyncio

import cenote


async def main() -> None:
    async with cenote.open() as store:
        saved = await store.agents.save(cenote.Agent(name="scout-7", type="scout", metadata={"depth_m": 40}))
        print(saved.name, saved.type)  # scout-7 scout

        await store.agents.update(saved)  # by compare-and-set on what was read
        late = await cenote.attempt(store.agents.update(saved))
        print(late.code, late.requires_retry)  # VERSION_CONFLICT True

        await store.flush()
        found = await store.agents.search({"depth_m": {"gt": 30}})
        print([agent.name for agent in found])  # ['scout-7']

        fact = await store.knowledge.add("The sala is flooded.", metadata={"cave": "sala"})
        print((await store.knowledge.find(fact.id)).text)  # The sala is flooded.

        await store.agents.delete("scout-7")
        absent = await cenote.attempt(store.agents.find("scout-7"))
        print(absent.code)  # NOT_FOUND


asyncio.run(main())
