"""`store.data(category)`: the four verbs along each route, those of the settings and of a category of one's own too."""

from datetime import timedelta
from typing import Any

import pytest

import cenote
from cenote import routing
from cenote.model.entry import Tier
from cenote.routing import Category, Route
from cenote.testing import TestServers

FOUND: dict[Category, tuple[object, Any]] = {
    Category.AGENT_STATE: ({"goal": "map", "step": 3}, {"step": {"gt": 2}}),
    Category.TASK_INFO: ({"depth_m": 40}, {"depth_m": 40}),
    Category.MESSAGE_LOG: ({"text": "the tunnel is flooded"}, "flooded"),
    Category.KNOWLEDGE_BASE: ("the tunnel floods in spring", "floods"),
}


async def test_each_kind_stores_retrieves_searches_and_removes(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        for category, (value, query) in FOUND.items():
            data = store.data(category)
            with pytest.raises(cenote.NotFoundError):
                await data.retrieve("first. ä")
            await data.store("first. ä", value)
            await data.store("first. ä", value)
            assert await data.retrieve("first. ä") == value, category
            await store.flush()
            assert [(match.key, match.value) for match in await data.search(query)] == [("first. ä", value)], category
            await data.remove("first. ä")
            await data.remove("first. ä")
            with pytest.raises(cenote.NotFoundError):
                await data.retrieve("first. ä")
            await store.flush()
            assert await data.search(query) == [], category
        sessions = store.data(Category.SESSION_DATA)
        await sessions.store("s", [1])
        assert await sessions.retrieve("s") == [1]
        assert (await store.sessions.find("s")).data == [1]
        with pytest.raises(cenote.RejectedError, match="searched"):
            await sessions.search("anything")
        await sessions.remove("s")
        with pytest.raises(cenote.NotFoundError):
            await sessions.retrieve("s")


async def test_what_the_kinds_own_verbs_made_is_found_by_its_id(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        task = await store.tasks.add("survey", {"cave": 7})
        message = await store.messages.send("hello", sender="a", to="b", metadata={"key": "claimed"})
        fact = await store.knowledge.add("water is wet")
        assert await store.data("TASK_INFO").retrieve(str(task.id)) == {"cave": 7}
        assert await store.data("MESSAGE_LOG").retrieve(str(message.id)) == "hello"
        assert await store.data("KNOWLEDGE_BASE").retrieve(str(fact.id)) == "water is wet"
        assert [match.key for match in await store.data("MESSAGE_LOG").search("hello")] == [str(message.id)]
        await store.data("TASK_INFO").store("same", 1)
        await store.data("MESSAGE_LOG").store("same", 1)
        for category in ("TASK_INFO", "MESSAGE_LOG"):
            with pytest.raises(cenote.AlreadyExistsError):
                await store.data(category).store("same", 2)
        await store.data("KNOWLEDGE_BASE").store("same", "one")
        await store.data("KNOWLEDGE_BASE").store("same", "other")
        assert await store.data("KNOWLEDGE_BASE").retrieve("same") == "other"


async def test_settings_change_a_route_and_categories_may_be_added(cenote_servers: TestServers) -> None:
    routing.register("AUDIT", Route((Tier.DISTRIBUTED_KV, Tier.RELATIONAL_DB), durability="sql"))
    routing.register("DRAFT", Route((Tier.DISTRIBUTED_KV,), ttl_s=3600))
    override = {"AGENT_STATE": {"resolver": "reject"}, "SESSION_DATA": {"ttl_s": 7200}}
    try:
        async with cenote.open(**cenote_servers.fresh(routes__override=override)) as store:
            await store.data("AUDIT").store("k", 1)
            row = await store._machines.core.table.read(store.agent("AUDIT").id, "k")
            assert row is not None  # durability="sql": nobody has waited for a flush

            await store.data("DRAFT").store("k", "draft")
            await store.data("SESSION_DATA").store("k", "session")
            assert await store.data("DRAFT").retrieve("k") == "draft"
            found = await store.sessions.find("k")
            assert found.data == "session"
            assert found.ttl == timedelta(hours=2)
            assert [one.data for one in await store.sessions.list()] == ["session"]

            state = store.data("AGENT_STATE", agent="scout")
            await state.store("k", 1)
            with pytest.raises(cenote.ConflictError):
                await state.store("k", 2)
            assert await store.agent("scout").get("k") == 1
    finally:
        routing.ROUTES.pop("AUDIT")
        routing.ROUTES.pop("DRAFT")


async def test_what_cannot_be_meant_is_refused(cenote_servers: TestServers) -> None:
    with pytest.raises(cenote.SetupError, match="no category 'NOWHERE'"):
        async with cenote.open(**cenote_servers.fresh(routes__override={"NOWHERE": {}})):
            pass
    async with cenote.open(**cenote_servers.fresh()) as store:
        with pytest.raises(cenote.RejectedError, match="there is no 'NOWHERE'"):
            store.data("NOWHERE")
        with pytest.raises(cenote.RejectedError, match="agents"):
            store.data("TASK_INFO", agent="scout")
        with pytest.raises(cenote.RejectedError, match="text"):
            await store.data("KNOWLEDGE_BASE").store("k", {"not": "a text"})
        for category in ("TASK_INFO", "MESSAGE_LOG", "KNOWLEDGE_BASE"):
            with pytest.raises(cenote.RejectedError, match="key"):
                await store.data(category).retrieve("")
