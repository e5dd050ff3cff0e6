"""6.1 Errors: an exception for each kind of trouble, or a result that holds either outcome."""

import asyncio

import cenote


async def main() -> None:
    async with cenote.open() as store:
        agent = store.agent("scout-7")

        good = await cenote.attempt(agent.put("plan", {"step": 1}))
        print(good.is_success, good.requires_retry)  # True False

        absent = await cenote.attempt(agent.entry("nothing"))
        print(absent.is_success, absent.error.code)  # False NOT_FOUND

        late = await cenote.attempt(agent.put("plan", {"step": 2}, if_version=0))
        print(late.error.code, late.requires_retry)  # VERSION_CONFLICT True


asyncio.run(main())
