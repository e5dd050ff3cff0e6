"""The routes of the specification, one by one, and what the settings may say of them."""

from typing import Any

import pytest

from cenote import routing
from cenote.errors import SetupError
from cenote.model.entry import Tier
from cenote.routing import Category, Route, routes


@pytest.mark.parametrize(
    ("category", "primary", "behind"),
    [
        (Category.SESSION_DATA, Tier.DISTRIBUTED_KV, ()),
        (Category.AGENT_STATE, Tier.DISTRIBUTED_KV, (Tier.RELATIONAL_DB,)),
        (Category.TASK_INFO, Tier.RELATIONAL_DB, ()),
        (Category.MESSAGE_LOG, Tier.RELATIONAL_DB, ()),
        (Category.KNOWLEDGE_BASE, Tier.VECTOR_STORE, (Tier.RELATIONAL_DB,)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_route_of_the_specification(category: Category, primary: Tier, behind: tuple[Tier, ...]) -> None:
    route = routes({})[category.name]
    assert route.primary is primary
    assert route.tiers[1:] == behind


def test_there_are_these_five_and_no_other() -> None:
    assert {category.name for category in Category} == set(routing.ROUTES)


def test_settings_win_field_by_field() -> None:
    table = routes({"SESSION_DATA": {"ttl_s": 60}, "AGENT_STATE": {"resolver": "reject", "durability": "sql"}})
    assert table["SESSION_DATA"] == Route((Tier.DISTRIBUTED_KV,), ttl_s=60)
    assert table["AGENT_STATE"].resolver == "reject"
    assert table["AGENT_STATE"].tiers == routing.ROUTES["AGENT_STATE"].tiers
    assert routing.ROUTES["SESSION_DATA"].ttl_s is None
    moved = routes({"TASK_INFO": {"tiers": ["DISTRIBUTED_KV", "RELATIONAL_DB"]}})
    assert moved["TASK_INFO"].primary is Tier.DISTRIBUTED_KV


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"SESSIONS": {}}, "no category 'SESSIONS'"),
        ({"SESSION_DATA": {"ttl": 5}}, "SESSION_DATA: there is no 'ttl'"),
        ({"SESSION_DATA": {"ttl_s": 0}}, "SESSION_DATA: ttl_s"),
        ({"SESSION_DATA": {"tiers": ["REDIS"]}}, "SESSION_DATA: tiers"),
        ({"SESSION_DATA": {"tiers": ["RELATIONAL_DB"]}}, "SESSION_DATA: it has no such table"),
        ({"SESSION_DATA": {"tiers": ["RELATIONAL_DB", "DISTRIBUTED_KV"]}}, "SESSION_DATA: no road"),
        ({"SESSION_DATA": {"durability": "sql"}}, 'SESSION_DATA: its tiers allow only durability "kv"'),
        ({"SESSION_DATA": {"resolver": "lww"}}, "SESSION_DATA: only the flow"),
        ({"TASK_INFO": {"ttl_s": 5}}, "TASK_INFO: a table keeps"),
        ({"AGENT_STATE": {"durability": "maybe"}}, "AGENT_STATE: durability"),
    ],
)
def test_what_cannot_be_meant_is_named(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        routes(overrides)
    assert says in str(caught.value)


def test_a_category_of_ones_own() -> None:
    try:
        routing.register("AUDIT", Route((Tier.DISTRIBUTED_KV, Tier.RELATIONAL_DB), durability="sql"))
        assert routes({"AUDIT": {"ttl_s": 5}})["AUDIT"].ttl_s == 5
        with pytest.raises(SetupError, match="no such table"):
            routing.register("LEDGER", Route((Tier.RELATIONAL_DB,), durability="sql"))
        with pytest.raises(SetupError, match="taken"):
            routing.register("AGENT_STATE", Route((Tier.DISTRIBUTED_KV,)))
    finally:
        routing.ROUTES.pop("AUDIT", None)
