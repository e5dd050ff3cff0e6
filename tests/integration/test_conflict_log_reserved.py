"""The conflict log's agent where few look: writes of several keys, and a recovery of a store that was killed."""

import pytest

import cenote
from cenote.engine.recovery import recover
from cenote.errors import RejectedError
from cenote.kv.link import Link
from cenote.model.key import CONFLICTS
from cenote.testing import TestServers


async def test_several_keys_at_once_are_refused_as_one_is(cenote_servers: TestServers) -> None:
    """Not as a partial failure: nothing was tried."""
    async with cenote.open(**cenote_servers.fresh()) as store:
        log = store.agent(CONFLICTS.id)
        for atomic in (False, True):
            with pytest.raises(RejectedError, match="conflict log"):
                await log.put_many({"x": 1, "y": 2}, atomic=atomic)
        assert [key async for key in log.keys()] == []


async def test_a_recovery_brings_the_records_and_no_name_for_them(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(flush__enabled=False)) as store:
        scout = store.agent("scout")
        await scout.put("k", 1)
        await scout.merge("k", 2, strategy="lww")
        core = store._core
        before = await store.conflicts()
        link = Link(core.config.kv, name="cenote-recovery")
        await link.connect()
        try:
            assert (await recover(link, core.table, core.names, core.config)).entries == 2
        finally:
            await link.close()
        assert [row.name for row in await core.table.agents_page(None, 10)] == ["scout"]
        rows = await core.table.conflicts_before(CONFLICTS.id, None, 10, core.now_ms() * 1000)
        assert [row.key.partition(".")[2] for row in rows] == [one.operation for one in before]
