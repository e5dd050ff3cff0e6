"""The verbs of `AgentState` and `Store`, as a user calls them, over all tiers."""

import asyncio
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

import cenote
from cenote import AgentState, Store
from cenote.testing import TestServers, evict_now, tier_of


async def until(condition: Any, what: str, seconds: float = 20) -> None:
    """Poll an async condition; fail when it does not hold in time."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


@dataclass
class Plan:
    goal: str
    steps: tuple[str, ...]
    done: int = 0


async def test_large_values_come_back_from_every_tier(cenote_store: Store) -> None:
    scout = cenote_store.agent("scout")
    compressible = {"rows": [{"name": f"n{number}", "text": "lorem ipsum dolor"} for number in range(20_000)]}
    for value in (compressible, os.urandom(600_000), os.urandom(3_000_000)):
        await scout.put("large", value)
        assert await scout.get("large") == value
        await evict_now(cenote_store)
        assert await scout.get("large") == value
        assert await tier_of(cenote_store, "scout", "large") == "both"
        assert (await scout.entry("large")).value == value
        assert [pair async for pair in scout.items("large")] == [("large", value)]
    with pytest.raises(cenote.RejectedError, match="67108864"):
        await scout.put("large", "x" * (65 * 2**20))


async def test_the_condition_of_a_write_means_every_tier(cenote_store: Store) -> None:
    scout = cenote_store.agent("scout")
    first = await scout.put("k", 1, if_version=0)
    for evicted in (False, True):
        if evicted:
            await evict_now(cenote_store)
        with pytest.raises(cenote.ConflictError):
            await scout.put("k", 2, if_version=0)
    second = await scout.put("k", 2, if_version=first)
    with pytest.raises(cenote.ConflictError):
        await scout.put("k", 3, if_version=first)
    with pytest.raises(cenote.ConflictError):
        await scout.delete("k", if_version=first.version)
    await scout.delete("k", if_version=await scout.entry("k"))
    await evict_now(cenote_store)
    with pytest.raises(cenote.ConflictError):
        await scout.put("k", 4, if_version=second)
    await scout.put("k", 4, if_version=0)
    with pytest.raises(cenote.RejectedError):
        await scout.put("k", 5, if_version=7)


async def test_concurrent_updates_lose_none(cenote_store: Store) -> None:
    scout = cenote_store.agent("scout")
    await asyncio.gather(*(scout.update("n", lambda n: n + 1, default=0) for _ in range(80)))
    assert await scout.get("n") == 80
    await scout.delete("n")
    await evict_now(cenote_store)
    with pytest.raises(cenote.NotFoundError):
        await scout.update("n", lambda n: n + 1)
    assert (await scout.update("n", lambda n: n + 1, default=10)).value == 11

    async def wait(_: Any) -> int:
        return 1

    with pytest.raises(cenote.RejectedError):
        await scout.update("n", wait)


async def test_update_keeps_the_expiry_and_an_expired_key_is_absent(cenote_store: Store) -> None:
    scout = cenote_store.agent("scout")
    await scout.put("k", 1, ttl=timedelta(seconds=1.2))
    entry = await scout.update("k", lambda value: value + 1)
    assert entry.expires_at is not None

    async def gone() -> bool:
        return await scout.get("k") is None

    await until(gone, "the key expires")
    assert [key async for key in scout.keys("")] == []
    await evict_now(cenote_store)
    assert await scout.get("k") is None
    await scout.put("k", 3, if_version=0)
    assert await scout.get("k") == 3


async def test_watch_tells_puts_deletes_and_expiries_in_order(cenote_store: Store) -> None:
    scout = cenote_store.agent("scout")
    await scout.put("old", 0)
    await evict_now(cenote_store)
    await scout.get("old")  # hydrated: a clean copy is state, not an event
    seen: list[tuple[str, Any, str]] = []
    listed = asyncio.Event()

    async def follow() -> None:
        async for entry in scout.watch(since=0):
            seen.append((entry.key, entry.value, entry.change))
            listed.set()
            if len(seen) == 5:
                return

    follower = asyncio.create_task(follow())
    await asyncio.wait_for(listed.wait(), 10)
    await scout.put("x", 1)
    await scout.delete("x")
    await scout.put("y", 2, ttl=timedelta(seconds=0.5))
    await asyncio.wait_for(follower, 10)
    assert seen == [
        ("old", 0, "put"), ("x", 1, "put"), ("x", None, "delete"), ("y", 2, "put"), ("y", None, "expiry"),
    ]  # fmt: skip


async def test_watch_resumes_from_a_version_over_an_eviction(cenote_store: Store) -> None:
    scout = cenote_store.agent("scout")
    before = await scout.put("a", 1)
    await scout.put("b", 2)
    await scout.put("a", 3)
    await evict_now(cenote_store)
    await scout.put("c", 4)
    seen: dict[str, Any] = {}
    async with asyncio.timeout(10):
        async for entry in scout.watch(since=before.version):
            seen[entry.key] = entry.value
            if len(seen) == 3:
                break
    assert seen == {"a": 3, "b": 2, "c": 4}
    with pytest.raises(cenote.ExpiredError):
        async for _ in scout.watch(since=cenote.Version(9, 1)):
            break


async def test_store_watch_sees_the_agents_it_asks_for(cenote_store: Store) -> None:
    started = asyncio.Event()
    seen: list[str] = []

    async def follow() -> None:
        async for entry in cenote_store.watch("scout-*", since=0):
            seen.append(entry.agent)
            started.set()
            if len(seen) == 3:
                return

    await cenote_store.agent("scout-0").put("k", 0)
    follower = asyncio.create_task(follow())
    await asyncio.wait_for(started.wait(), 10)
    for name in ("scout-1", "digger-1", "scout-2"):
        await cenote_store.agent(name).put("k", 1)
    await asyncio.wait_for(follower, 10)
    assert seen == ["scout-0", "scout-1", "scout-2"]


async def test_idle_entries_are_evicted_and_hydrated_back(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(state__ttl_s=2)) as store:
        scout = store.agent("scout")
        wanted = {f"k{number}": number for number in range(300)}
        await scout.put_many(wanted)

        async def evicted() -> bool:
            return (await store.stats()).kv_entries <= 1

        await until(evicted, "idle entries leave KV")
        hydrated = await scout.hydrate()
        assert hydrated.keys >= 299
        assert hydrated.bytes >= hydrated.keys
        assert await scout.get_many(wanted) == wanted
        assert dict([pair async for pair in scout.items()]) == wanted


async def test_two_stores_see_each_other_at_once(cenote_servers: TestServers) -> None:
    place = cenote_servers.fresh()
    async with cenote.open(**place) as one, cenote.open(**place) as two:
        assert await two.agent("scout").get("k") is None
        await one.agent("scout").put("k", 1)
        assert await two.agent("scout").get("k") == 1

        async def pushed() -> bool:
            entry = await two.agent("scout").entry("k")
            return bool(entry.value == 2 and entry.tier is cenote.Tier.MEMORY_CACHE)

        await one.agent("scout").put("k", 2)
        await until(pushed, "the other store's copy follows", seconds=5)


async def test_typed_keys_and_what_cannot_be_decoded(cenote_store: Store) -> None:
    plan = cenote_store.agent("scout").typed("plan", Plan)
    await plan.put(Plan("map", ("look", "draw")))
    assert await plan.get() == Plan("map", ("look", "draw"))
    entry = await plan.update(lambda old: Plan(old.goal, old.steps, old.done + 1))
    assert entry.value == Plan("map", ("look", "draw"), 1)
    await cenote_store.agent("scout").put("plan", {"goal": 7})
    with pytest.raises(cenote.CodecError):
        await plan.get()
    await plan.delete()
    assert await plan.get() is None


async def test_values_belong_to_the_caller(cenote_store: Store) -> None:
    scout = cenote_store.agent("scout")
    await scout.get("warm")
    value = {"list": [1]}
    await scout.put("k", value)
    value["list"].append(2)
    got = await scout.get("k")
    got["list"].append(3)
    assert await scout.get("k") == {"list": [1]}


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("", 1, "key"), ("k" * 513, 1, "512"), ("\U0001f600" * 200, 1, "1024"), (5, 1, "string"),
        ("k", float("nan"), "nan"), ("k", {"a": [{1: 2}]}, "a"), ("k", object(), "object"),
        ("k", 10**4000, "4000"), ("k", _nested(201), "200"),
    ],
)  # fmt: skip
async def test_what_cannot_be_carried_is_refused_before_anything_is_sent(
    cenote_store: Store, key: Any, value: Any, says: str
) -> None:
    scout = cenote_store.agent("scout")
    with pytest.raises(cenote.RejectedError, match=f"(?i){says}"):
        await scout.put(key, value)
    with pytest.raises(cenote.RejectedError):
        await scout.put_many({"fine": 1, key: value})
    assert await scout.get("fine") is None
    await scout.put("fine", 2)  # the connection is unharmed
    assert await scout.get("fine") == 2


@pytest.mark.parametrize("name", ["", "a" * 201, 7, None])
async def test_bad_agent_names_are_refused(cenote_store: Store, name: Any) -> None:
    with pytest.raises(cenote.RejectedError):
        cenote_store.agent(name)


async def test_a_closed_store_says_so(cenote_servers: TestServers) -> None:
    store = await cenote.open(**cenote_servers.fresh())
    scout: AgentState = store.agent("scout")
    await store.aclose()
    await store.aclose()
    with pytest.raises(cenote.SetupError, match="closed"):
        await scout.put("k", 1)


async def test_a_store_opens_and_takes_writes_while_postgresql_is_away(cenote_servers: TestServers) -> None:
    place = cenote_servers.fresh()
    async with cenote.open(**place) as store:
        await store.agent("scout").put("k", 1)
        await store.flush(20)
        kv, dsn = store.config.kv, store.config.sql.url
    assert dsn is not None
    away = dsn.get_secret_value().rpartition("@")[0] + "@127.0.0.1:1/cenote"
    one = cenote.open(
        kv=kv.url.get_secret_value() if kv.url else None, sql=away, namespace=place["namespace"], flush__drain_ms=0,
        kv__user=kv.user, kv__password=kv.password.get_secret_value() if kv.password else None,
    )  # fmt: skip
    async with one as store:
        assert await store.agent("scout").get("k") == 1
        await store.agent("scout").put("k", 2)
        assert (await store.health()).verdict is cenote.Verdict.UNHEALTHY
    async with cenote.open(**place) as store:
        await store.flush(20)
        assert await tier_of(store, "scout", "k") == "both"
        assert await store.agent("scout").get("k") == 2


async def test_a_watch_ends_with_its_store(cenote_servers: TestServers) -> None:
    store = await cenote.open(**cenote_servers.fresh())
    scout = store.agent("scout")
    await scout.put("k", 1)
    listed = asyncio.Event()

    async def follow() -> int:
        count = 0
        async for _ in scout.watch(since=0):
            count += 1
            listed.set()
        return count

    follower = asyncio.create_task(follow())
    await asyncio.wait_for(listed.wait(), 10)
    await store.aclose()
    assert await asyncio.wait_for(follower, 10) == 1
