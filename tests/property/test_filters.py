"""Filters mean the same in Python and in SQL, for any filter and document; what cannot be meant is refused."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cenote import limits
from cenote.errors import RejectedError
from cenote.model import tags
from cenote.model.filters import contained, equal, matches, parse
from cenote.sql.filters import Condition
from cenote.testing import TestServers

names = st.sampled_from(["a", "b", "c", "", "a.b", "$", "\\", '"', "é", "a b", "\0", "0", "-1"])
texts = st.sampled_from(["", "a", "ab", "b", "B", "é", "zz", "10", "9", "true", "a%b", "'; DROP TABLE t; --", "\ud800"])
numbers = st.sampled_from([0, -0.0, 1, 1.0, -1, 2**53 + 1, float(2**53), 1e16, 1e22, 10**22, 10**23, 1e23, 0.1, 5e-324])
leaves = st.none() | st.booleans() | numbers | texts
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
SPELT = {".": "\\.", "\\": "\\\\", "$": "\\$"}
paths = st.lists(names, min_size=1, max_size=3).map(
    lambda parts: ".".join("".join(SPELT.get(c, c) for c in part) for part in parts)
) | st.just("$")
paths = paths.filter(lambda path: path not in ("and", "or", "not"))
tests = st.one_of(
    st.fixed_dictionaries({}, optional={"eq": documents, "ne": documents, "contains": documents}),
    st.dictionaries(st.sampled_from(["lt", "lte", "gt", "gte"]), numbers | texts, min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(["in", "nin"]), st.lists(leaves, max_size=3), min_size=1, max_size=2),
    st.fixed_dictionaries({"exists": st.booleans()}),
).filter(bool)
wheres = st.recursive(
    st.dictionaries(paths, tests | leaves, min_size=1, max_size=2) | st.just({}),
    lambda inner: st.one_of(
        st.fixed_dictionaries({}, optional={"and": st.lists(inner, max_size=2), "or": st.lists(inner, max_size=2)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=4,
)
wheres = wheres | st.dictionaries(st.sampled_from(["a", "b", "a.b"]), leaves, min_size=1, max_size=2)
seen: Counter[object] = Counter()
FROM = "FROM unnest($1::text[]::jsonb[]) WITH ORDINALITY AS u (d, n)"


@pytest.fixture(scope="module")
def sql(cenote_servers: TestServers) -> Iterator[tuple[asyncio.Runner, asyncpg.Connection]]:
    with asyncio.Runner() as runner:
        con = runner.run(asyncpg.connect(cenote_servers.sql_dsn))
        yield runner, con
        runner.run(con.close())


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=wheres, several=st.lists(documents, min_size=1, max_size=12))
def test_sql_finds_what_matches(
    sql: tuple[asyncio.Runner, asyncpg.Connection], where: dict[str, Any], several: list[Any]
) -> None:
    runner, con = sql
    wanted = parse(where)
    several = [tags.project(json.loads(json.dumps(one))) for one in several]
    condition = Condition(wanted, "d", first=2)
    texts = [json.dumps(one) for one in several]
    query = f"SELECT array_agg(n ORDER BY n) {FROM} WHERE {condition.text}"
    found = runner.run(con.fetchval(query, texts, *condition.parameters)) or []
    expected = [number for number, one in enumerate(several, 1) if matches(wanted, one)]
    assert found == expected
    seen.update({"found": len(found), "not found": len(several) - len(found)})
    inside = contained(wanted)
    if inside is not None:
        within = f"SELECT array_agg(n) {FROM} WHERE d @> $2::text::jsonb"
        assert set(expected) <= set(runner.run(con.fetchval(within, texts, json.dumps(inside))) or [])
        seen["contained"] += 1


def test_enough_was_found_and_not_found() -> None:
    assert min(seen[name] for name in ("found", "not found", "contained")) > 30, seen


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"a": {"like": "x"}}, "where.a: there is no operator 'like'"),
        ({"a": {"$gt": 1}}, "no operator '$gt'"),
        ({"a": {"gt": None}}, "where.a.gt: a number or a text"),
        ({"a": {"gt": True}}, "where.a.gt"),
        ({"a": {"in": "abc"}}, "where.a.in: a list"),
        ({"a": {"exists": 1}}, "where.a.exists"),
        ({"and": {"a": 1}}, "where.and: a list"),
        ({"or": [{"a": 1}, 5]}, "where.or[1]: a filter is a mapping"),
        ({"a": float("nan")}, "where.a.eq"),
        ({"a": "x" * (limits.FILTER_OPERAND_BYTES_MAX + 1)}, "where.a.eq: "),
        ({".".join("a" * 21): 1}, "deeper than"),
        ({str(n): n for n in range(limits.FILTER_TESTS_MAX + 1)}, "more than"),
        ({1: 2}, "a path is a text"),
        ([], "a filter is a mapping"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(where: Any, says: str) -> None:
    with pytest.raises(RejectedError) as caught:
        parse(where)
    assert says in str(caught.value)


def test_a_filter_within_itself_is_refused() -> None:
    where: dict[str, Any] = {}
    where["not"] = where
    with pytest.raises(RejectedError, match="deeper"):
        parse(where)


def test_equal_is_typed() -> None:
    assert equal({"a": 1, "b": [1.0]}, {"b": [1], "a": 1.0})
    assert not equal(1, True)
    assert not equal("1", 1)
    assert not equal([1, 2], [2, 1])
