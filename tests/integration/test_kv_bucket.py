"""Buckets are created once by any number of processes, and refused when a setting would lose data."""

import asyncio
from typing import Any

import pytest
from kv_server import KvServer, config, running, server

from cenote.errors import SetupError
from cenote.kv.bucket import ensure, stream_info, ttl_config, update_metadata
from cenote.kv.link import Link
from cenote.naming import SESSION_DATA, Names

__all__ = ["running", "server"]

NAMES = Names("t")


async def connect(server: KvServer) -> Link:
    link = Link(config(server), name="test")
    await link.connect()
    return link


async def test_many_processes_create_the_buckets_at_once(server: KvServer) -> None:
    links = await asyncio.gather(*(connect(server) for _ in range(8)))
    stores = [{"cenote.store": str(number)} for number in range(8)]
    found = await asyncio.gather(
        *(ensure(link, NAMES, config(server), metadata=store) for link, store in zip(links, stores, strict=True))
    )
    assert len({buckets.state.created for buckets in found}) == 1
    assert len({buckets.state.metadata["cenote.store"] for buckets in found}) == 1
    state = found[0].state
    assert state.config["name"] == "KV_t_AGENT_STATE"
    assert state.config["max_age"] == 0
    assert state.config["discard"] == "new"
    assert state.config["deny_delete"] is True
    assert state.config["allow_atomic"] is True
    assert found[0].session.config["max_age"] == 0  # each session says itself when it is to go
    assert found[0].cache.config["max_age"] == 300 * 10**9
    assert state.ts_ms > 1_600_000_000_000
    await asyncio.gather(*(link.close() for link in links))


async def test_metadata_changes_nothing_else(server: KvServer) -> None:
    link = await connect(server)
    before = (await ensure(link, NAMES, config(server), metadata={"cenote.store": "a"})).state
    after = await update_metadata(link, "KV_t_AGENT_STATE", {"cenote.incarnation": "7"})
    assert after.metadata["cenote.store"] == "a"
    assert after.metadata["cenote.incarnation"] == "7"
    assert {**after.config, "metadata": 0} == {**before.config, "metadata": 0}
    assert (await ensure(link, NAMES, config(server))).state.metadata == after.metadata
    await link.close()


async def test_the_republished_subject_carries_the_entry(server: KvServer) -> None:
    link = await connect(server)
    await ensure(link, NAMES, config(server))
    info = await stream_info(link, "KV_t_AGENT_STATE")
    assert info.config["republish"] == {"src": "$KV.t_AGENT_STATE.>", "dest": "kvw.t_AGENT_STATE.>"}
    await link.close()


LOSSY: list[tuple[str, dict[str, Any]]] = [
    ("max_age", {"max_age": 60 * 10**9}),
    ("max_msgs_per_subject", {"max_msgs_per_subject": 5}),
    ("discard", {"discard": "old"}),
    ("storage", {"storage": "memory"}),
    ("allow_rollup_hdrs", {"allow_rollup_hdrs": True}),
    ("republish", {"republish": None}),
    ("republish", {"republish": {"src": "$KV.t_AGENT_STATE.a.>", "dest": "kvw.t_AGENT_STATE.a.>"}}),
    ("republish", {"republish": {"src": ">", "dest": "kvw.t_AGENT_STATE.>", "headers_only": True}}),
    ("allow_direct", {"allow_direct": False}),
    ("subjects", {"subjects": ["$KV.t_AGENT_STATE.a.>"], "republish": None}),
    ("allow_msg_ttl", {"allow_msg_ttl": True}),
    ("max_msgs", {"max_msgs": 1000}),
    ("persist_mode", {"persist_mode": "async", "allow_atomic": False}),
    ("retention", {"retention": "workqueue"}),
    ("deny_purge", {"deny_purge": True}),
    ("discard_new_per_subject", {"discard_new_per_subject": True}),
]


async def test_each_lossy_setting_is_refused_by_name(server: KvServer) -> None:
    link = await connect(server)
    good = (await ensure(link, NAMES, config(server))).state.config
    for setting, change in LOSSY:
        await link.api("STREAM.DELETE.KV_t_AGENT_STATE")
        wanted = {name: value for name, value in (good | change).items() if value is not None}
        await link.api("STREAM.CREATE.KV_t_AGENT_STATE", wanted)
        with pytest.raises(SetupError, match=rf"KV_t_AGENT_STATE.*\b{setting}\b"):
            await ensure(link, NAMES, config(server))
    await link.close()


async def test_a_side_bucket_that_does_not_fit_is_refused(server: KvServer) -> None:
    link = await connect(server)
    wrong = ttl_config(NAMES, SESSION_DATA, config(server), 60) | {"max_msgs_per_subject": 3}
    await link.api("STREAM.CREATE.KV_t_SESSION_DATA", wrong)
    with pytest.raises(SetupError, match="max_msgs_per_subject"):
        await ensure(link, NAMES, config(server))
    await link.close()


async def test_no_room_and_foreign_subjects_are_explained(server: KvServer) -> None:
    link = await connect(server)
    with pytest.raises(SetupError, match="bytes_max"):
        await ensure(link, NAMES, config(server, bytes_max=1 << 60))
    await link.api("STREAM.CREATE.OTHER", {"name": "OTHER", "subjects": ["$KV.t_AGENT_STATE.>"]})
    with pytest.raises(SetupError, match="namespace"):
        await ensure(link, NAMES, config(server))
    await link.close()
