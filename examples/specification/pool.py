"""5.1 The connection pool: the specification's numbers are the defaults, each of them a setting."""

import asyncio

import cenote


async def main() -> None:
    async with cenote.open(sql__pool_max=2, sql__acquire_timeout_s=0.2, flush__enabled=False) as store:
        sql = cenote.Config().sql
        print(sql.pool_max, sql.pool_min, sql.acquire_timeout_s)  # 10 2 30
        print(sql.idle_timeout_s, sql.max_lifetime_s)  # 600 7200

        async def slow(tx: cenote.Transaction) -> None:
            await tx.execute("SELECT pg_sleep(1)")

        outcomes = await asyncio.gather(*(store.transact(slow) for _ in range(3)), return_exceptions=True)
        print([type(one).__name__ for one in outcomes if one is not None])  # ['PoolTimeoutError']


asyncio.run(main())
