"""An eviction that crosses a rewind of the KV store (I11, flow rule 2), on a server that is not ours to protect."""

import asyncio
import shutil
from pathlib import Path

import pytest
from kv_server import USER, running

import cenote
from cenote import limits
from cenote.engine.evictor import Evictor
from cenote.testing import TestServers
from witness import another, at, demand, reached, tables, toothed


def facts_of_this_connection(patch: pytest.MonkeyPatch) -> None:
    """What was read before a reconnect is used after it."""
    current = property(lambda self: self._core.link.generation, lambda self, value: None)
    patch.setattr(Evictor, "_generation", current, raising=False)
    patch.setattr(limits, "PURGE_FACTS_AGE_MS_MAX", 60_000)


@toothed(facts_of_this_connection)
async def test_i11_an_eviction_never_crosses_a_rewind(cenote_servers: TestServers, tmp_path: Path) -> None:
    """The evictor has decided to remove everything below N; the server loses its tail and gives the numbers below N
    to new writes, which the purge would wipe before anyone has flushed them."""
    with running(tmp_path) as server:
        settings = {
            "kv": server.url, "kv__user": USER, "kv__password": server.password, "sql": cenote_servers.sql_dsn,
            "sql__migrate": "auto", "namespace": cenote_servers.fresh()["namespace"], "flush__drain_ms": 0,
        }  # fmt: skip
        async with cenote.open(**settings) as store, another(store, state__ttl_s=2) as other:
            agent = store.agent("i11")
            for number in range(5):
                await agent.put(f"early{number}", number)
            await store.flush(10)
            shutil.copytree(tmp_path / "store", tmp_path / "older")
            for number in range(30):
                await agent.put(f"late{number}", number)
            await store.flush(10)
            await other._core.probe_once()
            receipts: list[cenote.Receipt] = []

            flusher = store._machines.flusher
            assert flusher is not None

            async def rewind() -> None:
                await flusher.stop()  # or it might save the new write before the purge comes
                before = other._core.link.generation
                server.kill()
                shutil.rmtree(tmp_path / "store")
                (tmp_path / "older").rename(tmp_path / "store")
                server.start()
                await reached(lambda: other._core.link.generation > before, "the next connection")
                receipts.append(await other.agent("i11").put("fresh", "acked"))

            assert other._core.durable_name is not None
            evictor = Evictor(other._core, other._core.durable_name)
            with at(evict_decided=rewind) as crossed:
                while not crossed:
                    await evictor.tick()
                    await asyncio.sleep(0.05)
            assert receipts[0].version.revision < 30, "the store was not rewound"
            flusher.start()
            async with another(store) as fresh, tables(cenote_servers, store) as sql:
                demand(await fresh.agent("i11").get("fresh") == "acked", "I11: an eviction wiped an acked write")
                for number in range(30):
                    demand(await fresh.agent("i11").get(f"late{number}") == number, "I1: a flushed write was lost")
                await reached(lambda: sql.value(agent, "fresh"), "the new write in SQL")
