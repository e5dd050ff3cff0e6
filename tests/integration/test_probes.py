"""What machines ask over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette

import cenote
from cenote import dashboard
from cenote.engine import monitor
from cenote.health import ready as readiness
from cenote.store import Store
from cenote.testing import TestServers


@asynccontextmanager
async def asking(store: Store) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody who asks the routes of this store."""
    transport = httpx.ASGITransport(app=Starlette(routes=dashboard.routes(store)))
    async with httpx.AsyncClient(transport=transport, base_url="http://store") as client:
        yield client


async def test_the_routes_of_a_store_that_is_well(cenote_servers: TestServers) -> None:
    at = cenote_servers.fresh(health__sql_ms_max=1_000)
    async with cenote.open(**at) as store, asking(store) as client:
        await store.agent("ant").put("k", 1, durability="sql")
        assert (await client.get("/livez")).text == "ok\n"
        assert (await client.get("/readyz")).text.startswith("ready")
        verbose = (await client.get("/readyz?verbose")).text
        assert "[+] jetstream: answers" in verbose
        assert "[+] postgresql: answered in" in verbose
        health = await client.get("/health")
        assert health.status_code == 200
        assert {check["name"] for check in health.json()["checks"]} > {"jetstream", "postgresql", "schema", "pool"}
        assert health.headers["cache-control"] == "no-store"
        stats = (await client.get("/stats")).json()
        assert stats["flushed"] == (await store.stats()).flushed
        assert set(stats["windows"]) == {"10s", "1m", "5m"}


async def test_without_postgresql_a_process_is_ready_until_too_much_waits(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = cenote_servers.fresh(flush__enabled=False, flush__drain_ms=0, flush__backlog_count_max=500)
    async with cenote.open(**at) as store, asking(store) as client:

        async def away(*_: object) -> cenote.UnavailableError:
            return cenote.UnavailableError("it is away", tier="RELATIONAL_DB")

        monkeypatch.setattr(monitor, "answers_in", away)
        await store.agent("ant").put("k", 1)
        found = await client.get("/readyz?verbose")
        assert found.status_code == 200
        assert found.text.startswith("ready, degraded\nbecause: PostgreSQL does not answer: it is away")
        await store.agent("ant").put_many({f"k{number}": number for number in range(400)})
        found = await client.get("/readyz?verbose")
        assert found.status_code == 503
        assert "[-] backlog: 401 writes wait; from 500 on writes are refused" in found.text
        assert (await store.ready()).ready is False


async def test_a_backlog_that_nobody_flushes_is_told(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(flush__enabled=False, flush__drain_ms=0)) as store:
        assert not (await store.ready()).degraded
        await store.agent("ant").put("k", 1)
        found = await store.ready()
        assert (found.ready, found.degraded) == (True, True)
        assert found.reasons == ("1 writes wait and no process flushes",)


async def test_without_nats_a_process_is_alive_and_not_ready(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cenote.open(**cenote_servers.fresh(flush__drain_ms=0)) as store, asking(store) as client:

        async def away(*_: object) -> cenote.UnavailableError:
            return cenote.UnavailableError("it is away", tier="DISTRIBUTED_KV")

        async def unanswered(*_: object, **__: object) -> cenote.Stats:
            raise cenote.UnavailableError("it is away", tier="DISTRIBUTED_KV", hint="start it")

        monkeypatch.setattr(readiness, "_kv", away)
        monkeypatch.setattr(monitor, "stats", unanswered)
        assert (await client.get("/livez")).status_code == 200
        found = await client.get("/readyz")
        assert found.status_code == 503
        assert found.text.startswith("not ready\nbecause: NATS does not take writes: it is away")
        stats = await client.get("/stats")
        assert stats.status_code == 503
        assert stats.json() == {"error": "UnavailableError", "message": "it is away", "hint": "start it"}
        health = await client.get("/health")
        assert health.status_code == 503
        assert health.json()["verdict"] == "unhealthy"


async def test_however_many_ask_the_store_is_asked_once(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    plain = Store.stats

    async def counted(self: Store) -> cenote.Stats:
        nonlocal asked
        asked += 1
        return await plain(self)

    monkeypatch.setattr(Store, "stats", counted)
    async with cenote.open(**cenote_servers.fresh(flush__drain_ms=0)) as store, asking(store) as client:
        answers = await asyncio.gather(*(client.get("/stats") for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        assert asked < 10
