"""6.3 Retry: conflicts of transactions are tried again as a whole, with full jitter, under one deadline."""

import asyncio

import cenote


async def main() -> None:
    async with cenote.open() as store:
        runs = 0

        async def twice(tx: cenote.Transaction) -> str:
            nonlocal runs
            runs += 1
            if runs == 1:  # as PostgreSQL says when two transactions cannot be put in one order
                await tx.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")
            return "done"

        print(await store.transact(twice), runs)  # done 2
        print(cenote.ConflictError.retryable, cenote.NotFoundError.retryable)  # True False

        entry = await store.agent("scout-7").update("visits", lambda visits: visits + 1, default=0)
        print(entry.value)  # 1


asyncio.run(main())
