"""200,000 messages of four processes: each is read once, in one order, while they are written; and a partition that is
dropped gives its disk back."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from message_writers import RECIPIENTS

import cenote
from cenote.sql.messages import MessageTable
from cenote.store import Store
from cenote.testing import FaultProxy, TestServers

WRITERS, EACH, PARTITIONS = 4, 50_000, 3
DAY_S, DAY_US = 86_400, 86_400_000_000
Seen = tuple[int, int]


def port(servers: TestServers, name: str) -> int:
    return int(servers.info[name]["address"].rpartition(":")[2])


def of(message: cenote.Message) -> Seen:
    return message.body["writer"], message.body["number"]


class Days:
    """The partitions, and what is to be the time."""

    def __init__(self, store: Store) -> None:
        self.table: MessageTable = store.messages._table
        self.schema = store.config.names.schema("messages")

    async def prepare(self) -> list[int]:
        """Partitions of a day, made ahead; when each begins. The first is tomorrow's: no midnight comes in between."""
        tomorrow = ((await self.table.partitions()).at_us // DAY_US + 1) * DAY_US
        for day in range(PARTITIONS):
            await self.table.make_partition(tomorrow + day * DAY_US, DAY_S, search=False)
        return [since for since, _ in (await self.table.partitions()).bounds]

    async def begin(self, day_us: int) -> None:
        """From now on messages lie in this day."""
        await self.table.db.fetchval(f"SELECT setval('{self.schema}.position', $1)", day_us)

    async def sizes(self) -> list[tuple[int, int, str]]:
        """Rows, bytes and main file of each partition."""
        db = self.table.db
        names = await db.fetch(f"SELECT name FROM {self.schema}.partitions ORDER BY since")
        found = []
        for (name,) in names:
            row = await db.fetchrow(
                f"SELECT (SELECT count(*) FROM {self.schema}.{name}), pg_total_relation_size($1::text::regclass),"
                " pg_relation_filepath($1::text::regclass)",
                f"{self.schema}.{name}",
            )
            assert row is not None
            found.append((row[0], row[1], row[2]))
        return found


async def pages(store: Store, total: int) -> AsyncIterator[cenote.Message]:
    """Everything, page by page, until so many messages have come."""
    position, count = None, 0
    while count < total:
        page = await store.messages.read(limit=1000, cursor=position)
        for one in page:
            yield one
            count, position = count + 1, one.position
        if not page.items:
            await asyncio.sleep(0.02)


async def backwards(store: Store) -> list[Seen]:
    found: list[Seen] = []
    cursor = None
    while True:
        page = await store.messages.read(limit=1000, cursor=cursor, newest_first=True)
        found += map(of, page)
        cursor = page.next
        if cursor is None:
            return found


async def cut_off_again_and_again(
    settings: dict[str, Any], servers: TestServers, wanted: int
) -> tuple[list[Seen], int]:
    """What one recipient's subscriber hears while both of its connections break now and then, and how often it began
    anew in another process's place."""
    heard: list[Seen] = []
    began, position = 0, None
    async with FaultProxy(port(servers, "postgres")) as sql, FaultProxy(port(servers, "nats")) as kv:
        ways = servers.by_url(sql_port=sql.port, kv_port=kv.port, flush__enabled=False, flush__drain_ms=0)
        while len(heard) < wanted:
            began += 1
            async with cenote.open(**(ways | {"namespace": settings["namespace"]})) as store:
                async for one in store.messages.subscribe(to="reader-1", since=position or 0):
                    heard.append(of(one))
                    position = one.position
                    if len(heard) % 5_000 == 0:
                        sql.reset()
                        kv.reset()
                    if len(heard) % 20_000 == 0 or len(heard) == wanted:
                        break
        assert sql.accepted > 8, "it was never cut off"
        assert kv.accepted > 8, "it was never cut off"
    return heard, began


def data_directory(servers: TestServers) -> Path:
    """Where PostgreSQL keeps its files."""
    return next(Path(servers.data_dir).rglob("postgresql.conf")).parent


def disk(file: Path) -> int:
    """Bytes that this file and all others of its database take on the disk."""
    return sum(one.stat().st_blocks * 512 for one in file.parent.iterdir())


@pytest.mark.judge
async def test_four_writers_are_read_once_in_one_order(cenote_servers: TestServers) -> None:
    settings = cenote_servers.by_url(flush__enabled=False, flush__drain_ms=0, messages__partition_s=DAY_S)
    total = WRITERS * EACH
    async with cenote.open(**settings) as store:
        days = Days(store)
        begins = await days.prepare()
        await days.begin(begins[0])
        given = json.dumps({"settings": settings, "count": WRITERS, "times": EACH})
        child = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).with_name("message_writers.py")), given,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(WRITERS):
            await child.stdout.readline()
        child.stdin.close()
        tail = asyncio.create_task(cut_off_again_and_again(settings, cenote_servers, total // RECIPIENTS))

        seen: list[Seen] = []
        read_while_writing = 0
        async for one in pages(store, total):
            seen.append(of(one))
            read_while_writing += child.returncode is None
            if len(seen) in (total // 3, 2 * total // 3):
                await days.begin(begins[1 + len(seen) // (2 * total // 3)])
        assert await child.wait() == 0

        assert len(set(seen)) == len(seen) == total
        assert set(seen) == {(writer, number) for writer in range(WRITERS) for number in range(EACH)}
        for writer in range(WRITERS):  # what one said in one call after the other stands in that order
            own = [number // 500 for who, number in seen if who == writer]
            assert own == sorted(own)
        assert read_while_writing > total / 2
        assert await backwards(store) == seen[::-1]
        heard, began = await tail
        assert heard == [(writer, number) for writer, number in seen if number % RECIPIENTS == 1]
        assert began >= 3

        sizes = await days.sizes()
        assert [rows > total / 10 for rows, _, _ in sizes] == [True] * PARTITIONS
        rows, size, path = sizes[0]
        file = data_directory(cenote_servers) / path
        before = disk(file)
        until_us = begins[0] + DAY_US
        now_us = await store._core.db.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        assert await days.table.drop_partitions((now_us - until_us) / 1e6 - 1) == 1
        given_back = before - disk(file)
        assert given_back > 0.9 * size
        assert len(await days.sizes()) == PARTITIONS - 1
        assert await backwards(store) == seen[rows:][::-1]
        print(f"{total} messages, {rows} of them dropped: {size} bytes, {given_back} given back by the disk")
