"""What can be seen of the distance between the tiers: unflushed keys, agents that lag, windows, health, readiness."""

from typing import Any

import pytest
from cli_run import Cli

import cenote
from cenote import limits
from cenote.engine.core import Core
from cenote.store import Store
from cenote.testing import TestServers
from witness import reached

ASIDE = {"flush__enabled": False, "flush__drain_ms": 0}


async def test_dirty_keys_are_listed_the_oldest_first_until_they_are_in_sql(cenote_servers: TestServers) -> None:
    at = cenote_servers.fresh(**ASIDE)
    async with cenote.open(**at) as store:
        for key, agent in (("first", "ant"), ("second", "bee"), ("third", "ant")):
            await store.agent(agent).put(key, {"of": key})
        receipt = await store.agent("ant").delete("third")
        found = await store.dirty()
        assert [(one.agent, one.key, one.deleted) for one in found] == [
            ("ant", "first", False), ("bee", "second", False), ("ant", "third", True),
        ]  # fmt: skip
        assert found[2].version == receipt.version
        assert found[0].age_ms >= found[1].age_ms >= found[2].age_ms >= 0
        assert found[0].written_at.tzinfo is not None
        assert found[0].bytes > 0
        assert found.compared
        assert not found.cut
        assert [one.key for one in await store.dirty("ant")] == ["first", "third"]
        assert await store.dirty("nobody") == []
        some = await store.dirty(limit=2)
        assert len(some) == 2
        assert some.cut
        async with cenote.open(**at | {"flush__enabled": True}) as flusher:
            await flusher.flush(20)
            assert await store.dirty() == []
            assert await store.lagging() == []
        await store.agent("bee").put("second", "again")
        assert [one.key for one in await store.dirty()] == ["second"]


async def test_a_key_that_sql_has_is_not_dirty_though_it_is_above_the_floor(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 1: a new durable delivers everything once more; its floor alone says nothing."""
    at = cenote_servers.fresh(**ASIDE)
    async with cenote.open(**at) as store:
        await store.agent("ant").put("in sql", 1)
        async with cenote.open(**at | {"flush__enabled": True}) as flusher:
            await flusher.flush(20)
        await store.agent("ant").put("not in sql", 2)

        async def no_floor(self: Core, name: str) -> None:
            return None

        monkeypatch.setattr(Core, "consumer", no_floor)
        assert [one.key for one in await store.dirty()] == ["not in sql"]
        (ant,) = await store.lagging()
        assert ant.dirty == 1


async def test_the_agents_that_lag_most(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**ASIDE)) as store:
        for number in range(5):
            await store.agent(f"a{number}").put_many({f"k{key}": key for key in range(number + 1)})
        found = await store.lagging()
        assert [(one.agent, one.dirty) for one in found] == [(f"a{number}", number + 1) for number in range(5)]
        assert [one.oldest_ms for one in found] == sorted((one.oldest_ms for one in found), reverse=True)
        some = await store.lagging(2)
        assert [one.agent for one in some] == ["a0", "a1"]
        assert some.cut


async def test_a_look_reads_only_so_much(cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DIRTY_SCAN_ENTRIES", 10)
    async with cenote.open(**cenote_servers.fresh(**ASIDE)) as store:
        for limit in (0, -1, limits.DIRTY_COUNT_MAX + 1):
            for look in (store.dirty(limit=limit), store.lagging(limit)):
                with pytest.raises(cenote.RejectedError, match="limit"):
                    await look
        await store.agent("ant").put_many({f"k{key}": key for key in range(30)})
        found = await store.dirty()
        assert len(found) == 10
        assert found.cut
        (ant,) = await store.lagging()
        assert ant.dirty == 10


async def test_the_windows_and_the_specification_s_numbers(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        await store.agent("ant").put_many({f"k{key}": key for key in range(100)})
        await store.flush(20)

        async def told() -> bool:
            return (await store.stats()).windows["5m"].count == 100

        await reached(told, "what the flusher tells of itself")
        now = await store.stats()
        assert set(now.windows) == {"10s", "1m", "5m"}
        for window in now.windows.values():
            assert window.count == 100
            assert 1 <= window.commits <= 100
            assert window.p50 is not None
            assert window.p95 is not None
            assert 0 < window.p50 <= window.p95
        assert now.flush_rate == 10.0
        assert now.batch_mean is not None
        assert now.batch_mean >= 1
        assert now.to_memory_stats() == (100, 100, 0, now.avg_flush_ms, now.windows["10s"].p95)


async def test_health_says_what_it_looked_at(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(health__sql_ms_max=1_000)) as store:
        await store.agent("ant").put("k", 1, durability="sql")
        found = await healthy(store)
        checks = {check.name: check for check in found.checks}
        assert {"jetstream", "postgresql", "consistency", "formats", "schema", "pool", "dead letters"} <= set(checks)
        assert all(check.hint is None for check in found.checks)
        jetstream = checks["jetstream"].details
        assert jetstream["ttl_s"] == store.config.state.ttl_s
        assert jetstream["replicas"] == 1
        assert {"entries", "bytes", "bytes_max", "backlog", "fill"} <= set(jetstream)
        assert checks["schema"].details["database"] == checks["schema"].details["known"]
        ready = await store.ready()
        assert (ready.ready, ready.degraded, ready.reasons) == (True, False, ())
        assert set(ready.parts) == {"jetstream", "postgresql", "backlog"}


def test_the_command_line_says_what_waits_for_whom_and_what_to_do(
    cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]
) -> None:
    at = cenote_servers.fresh()
    cli = Cli(capsys, ["--data-dir", str(at["data_dir"]), "--namespace", at["namespace"]])
    with cenote.blocking.open(**at | ASIDE) as store:
        store.agent("ant").put_many({"one": 1, "two": 2})
        status = cli("status", "--json").json
        assert [(one["agent"], one["dirty"]) for one in status["lagging"]] == [("ant", 2)]
        assert set(status["stats"]["windows"]) == {"10s", "1m", "5m"}
        printed = cli("status")
        assert printed.code == 2
        assert "ant: 2 keys, the oldest" in printed.out
        assert "→ start one: cenote serve" in printed.out
        assert "ms of 0 writes, 0 violations" in printed.out
        health = cli("health")
        assert "consistency: unhealthy (2 entries wait and no process flushes)\n    → start one" in health.out
        (check,) = [one for one in cli("health", "--json").json["checks"] if one["name"] == "consistency"]
        assert check["details"]["dirty_entries"] == 2


async def healthy(store: Store) -> cenote.Health:
    """The health, once it is green: what was flushed late is told of for some seconds."""
    found: list[Any] = []

    async def green() -> bool:
        found.append(await store.health())
        return found[-1].verdict is cenote.Verdict.HEALTHY

    await reached(green, "green health")
    return found[-1]
