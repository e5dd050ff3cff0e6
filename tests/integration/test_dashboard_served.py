"""The dashboard as it is served: live ticks, readers without number, nothing of the token in a log, an end."""

import asyncio
import json
import logging
import socket
from contextlib import AsyncExitStack

import httpx
import pytest

import cenote
from cenote.dashboard import live
from cenote.dashboard.serving import _listener, served
from cenote.store import Store
from cenote.testing import TestServers


class Reader:
    """Somebody who reads a stream of events, and stays."""

    def __init__(self, answer: httpx.Response) -> None:
        self.status = answer.status_code
        self._lines = answer.aiter_lines()

    async def events(self, count: int) -> list[dict[str, str]]:
        """The next ones; fewer when the stream ends."""
        found: list[dict[str, str]] = []
        fields: dict[str, str] = {}
        while len(found) < count:
            line = await anext(self._lines, None)
            if line is None:
                break
            name, _, value = line.partition(": ")
            if line:
                fields[name] = fields[name] + "\n" + value if name in fields else value
            else:
                found.append(fields)
                fields = {}
        return found


async def test_ticks_come_alive_and_end_with_the_server(
    cenote_servers: TestServers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with cenote.open(**cenote_servers.fresh(flush__drain_ms=0)) as store, AsyncExitStack() as readers:
        async with served(store, port=0, actions=False, token_file=None) as address:
            base, _, token = address.partition("?token=")
            client = await readers.enter_async_context(
                httpx.AsyncClient(base_url=base, follow_redirects=True, limits=httpx.Limits(max_connections=None))
            )
            assert (await client.get(address)).status_code == 200  # the cookie is kept
            await store.agent("scout").put("k", 1)
            first = Reader(await readers.enter_async_context(client.stream("GET", "/live")))
            second = Reader(await readers.enter_async_context(client.stream("GET", "/live?format=json")))
            pages, documents = await asyncio.gather(first.events(2), second.events(2))
            shown = {one["id"]: one["data"] for one in pages}
            told = {one["id"]: json.loads(one["data"]) for one in documents}
            assert len(told) == 2
            assert shown.keys() & told.keys()  # all who look see the same ticks
            for number in shown.keys() & told.keys():
                assert f'data-tick="{told[number]["tick"]}"' in shown[number]
                entries = told[number]["stats"]["value"]["kv_entries"]
                assert f'<data value="{entries}" data-of="stats.value.kv_entries">{entries:,}</data>' in shown[number]
            assert (await client.get("/nothing")).status_code == 404
            assert (await client.get("/", headers={"host": "evil.example"})).status_code == 403
            async with asyncio.timeout(30):
                more = await _as_many_as_may(client, readers)
            assert more[-1].status == 503
            assert len(more) - 1 == live._READERS_MAX - 2
        async with asyncio.timeout(30):
            assert len(await first.events(1_000)) < 1_000  # it has an end
        ours = [one for one in caplog.records if one.name.split(".")[0] not in ("httpx", "httpcore")]
        assert token not in " ".join(one.getMessage() for one in ours)
        await _left(store)


async def _as_many_as_may(client: httpx.AsyncClient, readers: AsyncExitStack) -> list[Reader]:
    found: list[Reader] = []
    while len(found) <= live._READERS_MAX and (not found or found[-1].status == 200):
        found.append(Reader(await readers.enter_async_context(client.stream("GET", "/live?format=json"))))
        if found[-1].status == 200:
            assert await found[-1].events(1)
    return found


async def _left(store: Store) -> None:
    """The store goes on after its dashboard."""
    assert await store.agent("scout").get("k") == 1


def test_small_answers_are_not_held_back() -> None:
    """asyncio sets TCP_NODELAY on sockets that say that they are TCP; else each answer waits for the client's ack."""
    with _listener("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
