"""What comes back equals what went in, from every tier: L1, KV, SQL after eviction, and after hydration.

On real servers, with any key and value of the contract; types, signs of zero and hostile names included.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import cenote
from cenote.testing import TestServers, evict_now, tier_of

EXAMPLES = 500
BIG = 10**4000 - 1  # the limit

any_text = st.text(st.characters(exclude_categories=()), max_size=30)  # NUL and lone surrogates, too
numbers = st.integers() | st.sampled_from([2**70, BIG, -BIG]) | st.floats(allow_nan=False, allow_infinity=False)
zones = st.sampled_from([None, UTC, timezone(timedelta(hours=-3, minutes=-30)), ZoneInfo("Europe/Berlin")])
moments = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1), timezones=zones)
hashable = st.none() | st.booleans() | st.integers() | any_text | st.binary(max_size=20) | st.uuids() | st.dates()
leaves = (
    st.none() | st.booleans() | numbers | any_text | st.binary(max_size=40) | st.uuids() | moments | st.dates()
    | st.times() | st.timedeltas() | st.decimals(allow_nan=False, allow_infinity=False)
    | st.sets(hashable, max_size=4) | st.frozensets(hashable, max_size=4)
)  # fmt: skip
names = any_text | st.sampled_from(["$tuple", "$dict", "$", "$$", "__proto__"])
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4) | st.tuples(inner, inner) | st.tuples()
    ),
    max_leaves=12,
)
hostile = st.sampled_from(
    [
        "*",
        ">",
        "a.*",
        "..",
        ".a",
        "a.",
        "a..b",
        "a b",
        "=00",
        "=",
        "a\n",
        "\0",
        "\x1a",
        "\ud800",
        "$KV.x",
        "ключ",
        "k" * 100,
    ]
)
agents = st.text(st.characters(exclude_categories=()), min_size=1, max_size=20) | hostile
keys = st.text(st.characters(exclude_categories=()), min_size=1, max_size=20) | hostile

reached: Counter[str] = Counter()


def same(left: Any, right: Any) -> bool:
    """Equal, of the same type at every place, with the same sign of zero."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    if isinstance(left, Decimal):
        return left.as_tuple() == right.as_tuple()
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, set | frozenset):
        return left == right and {(type(one), one) for one in left} == {(type(one), one) for one in right}
    if isinstance(left, datetime | time):
        return left == right and left.utcoffset() == right.utcoffset() and left.fold == right.fold
    return bool(left == right)


@pytest.fixture(scope="module")
def opened(cenote_servers: TestServers) -> Iterator[tuple[asyncio.Runner, cenote.Store]]:
    with asyncio.Runner() as runner:
        store = runner.run(_open(cenote_servers))
        yield runner, store
        runner.run(store.aclose())


async def _open(servers: TestServers) -> cenote.Store:
    return await cenote.open(**servers.fresh())


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(agent=agents, key=keys, value=values)
@example("a", "k", [0.0, -0.0, 1, 1.0, True, 1e16, 1e22, 5e-324, 2**70])
@example("a", "k", {"$tuple": [1]})
@example("a", "k", {"\0": "\ud800", "b": ({1}, frozenset(), b"")})
def test_any_key_and_value_comes_back_equal_from_every_tier(
    opened: tuple[asyncio.Runner, cenote.Store], agent: str, key: str, value: Any
) -> None:
    runner, store = opened
    runner.run(_round(store, agent, key, value))


async def _round(store: cenote.Store, agent: str, key: str, value: Any) -> None:
    scout = store.agent(agent)
    await scout.get("warm the cache")
    await scout.put(key, value)
    entry = await scout.entry(key)
    assert same(entry.value, value), "what the writer's own process reads"
    reached[entry.tier.name] += 1
    store._core.cache.clear()
    entry = await scout.entry(key)
    assert same(entry.value, value), "KV"
    reached[entry.tier.name] += 1
    await evict_now(store)
    assert await tier_of(store, agent, key) == "sql"
    entry = await scout.entry(key)
    assert same(entry.value, value), "SQL after eviction"
    reached[entry.tier.name] += 1
    assert await tier_of(store, agent, key) == "both", "the read has hydrated it"
    store._core.cache.clear()
    entry = await scout.entry(key)
    assert same(entry.value, value), "KV after hydration"
    reached["hydrated"] += 1
    await scout.delete(key)


def test_every_tier_was_reached(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nround trips by tier: {dict(reached)}")
    assert min(reached.values()) >= 500
    assert {"DISTRIBUTED_KV", "RELATIONAL_DB", "MEMORY_CACHE", "hydrated"} <= set(reached)


LOOK_ALIKES = [
    ["550e8400-e29b-41d4-a716-446655440000", "550E8400-E29B-41D4-A716-446655440000", "550e8400e29b41d4a716446655440000",
     "{550e8400-e29b-41d4-a716-446655440000}", "urn:uuid:550e8400-e29b-41d4-a716-446655440000"],
    ["é", "e\u0301", "e", "É"], ["a", "A", "а", "a ", " a", "a\0", "a\n"],
    ["*", ">", "=2A", "a.b", "a=2Eb"], ["None", "none", "null", "0", "../a", "%2e"],
]  # fmt: skip


@pytest.mark.parametrize("group", LOOK_ALIKES, ids=lambda group: ascii(group[0]))
def test_look_alike_agents_and_keys_never_see_each_other(
    opened: tuple[asyncio.Runner, cenote.Store], group: list[str]
) -> None:
    runner, store = opened

    async def check() -> None:
        for number, name in enumerate(group):
            await store.agent(name).put("same key", number)
            await store.agent("same agent").put(name, number)
        for evicted in (False, True):
            if evicted:
                await evict_now(store)
            for number, name in enumerate(group):
                assert await store.agent(name).get("same key") == number
                assert [key async for key in store.agent(name).keys()] == ["same key"]
                assert await store.agent("same agent").get(name) == number
        for name in group:
            await store.agent("same agent").delete(name)

    runner.run(check())


def test_today_is_a_date_and_not_a_moment() -> None:
    assert not same(date(2026, 1, 1), datetime(2026, 1, 1))
    assert not same(0.0, -0.0)
    assert not same([True], [1])
