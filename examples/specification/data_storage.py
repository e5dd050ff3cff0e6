"""1.1, 1.2 One interface for every kind of data, each in the store that its route names."""

import asyncio

import cenote


async def main() -> None:
    async with cenote.open() as store:
        state = store.data(cenote.Category.AGENT_STATE, agent="scout-7")
        await state.store("plan", {"goal": "map the cave", "step": 1})
        print(await state.retrieve("plan"))  # {'goal': 'map the cave', 'step': 1}
        await store.flush()  # a search asks PostgreSQL
        print([match.key for match in await state.search({"step": {"lt": 5}})])  # ['plan']

        knowledge = store.data(cenote.Category.KNOWLEDGE_BASE)
        await knowledge.store("sala", "The sala floods in spring.")
        print([match.value for match in await knowledge.search("floods")])  # ['The sala floods in spring.']

        await state.remove("plan")
        gone = await cenote.attempt(state.retrieve("plan"))
        print(gone.is_success, gone.code)  # False NOT_FOUND

        sessions = store.data(cenote.Category.SESSION_DATA)
        await sessions.store("ada", {"cart": []})
        print((await store.sessions.find("ada")).data)  # {'cart': []}


asyncio.run(main())
