"""The conflict log where few look: versions in its view, writes of several keys, a recovery of a killed store."""

import pytest

import cenote
from cenote.engine.recovery import recover
from cenote.errors import RejectedError
from cenote.kv.link import Link
from cenote.model.key import CONFLICTS
from cenote.testing import TestServers
from witness import tables


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


async def test_the_view_names_both_versions(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        scout = store.agent("scout")
        there = await scout.put("k", 1)
        written = await scout.merge("k", 2, strategy="lww")
        await store.flush(20)
        (row,) = await sql.link.fetch(f"SELECT * FROM {sql.schema}.conflicts")
        (one,) = await store.conflicts()
        assert tuple(row["versions"]) == one.versions
        assert one.versions[0] == str(there.version)
        assert one.versions[1] is not None
        assert cenote.Version.parse(one.versions[1]) <= written.version


async def test_records_of_one_millisecond_keep_their_order(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of operations do not sort as text: `10` comes after `f`."""
    async with cenote.open(**cenote_servers.fresh()) as store:
        now_ms = store._core.now_ms()
        monkeypatch.setattr(store._core, "now_ms", lambda: now_ms)
        scout = store.agent("scout")
        for number in range(20):
            await scout.merge("k", number, strategy="lww")
        assert [one.incoming for one in await store.conflicts()] == list(range(19, 0, -1))
