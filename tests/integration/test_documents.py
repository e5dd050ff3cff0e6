"""Documents through the store: two processes edit one at the same time, and both edits are in KV and in SQL."""

import asyncio
import sys

import pytest

import cenote
from cenote.testing import TestServers
from witness import another, evict_all, tables


async def test_concurrent_edits_of_one_document_are_all_there(cenote_servers: TestServers) -> None:
    def line(name: str) -> object:
        return lambda one: one.doc.get_text("t").insert(0, f"{name} ")

    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as other:
        mine, yours = store.agent("a"), other.agent("a")
        names = [f"{side}{i}" for i in range(8) for side in "mn"]
        await asyncio.gather(
            *(
                (mine if name[0] == "m" else yours).update("doc", line(name), default=cenote.Document())
                for name in names
            )
        )
        held = await mine.get("doc")
        held.doc.get_map("meta").insert("title", "Cave")
        await yours.update("doc", line("late"))
        await mine.put("doc", held)  # merges: it was made from an older state
        with pytest.raises(cenote.RejectedError, match="Document"):
            await mine.put("doc", "plain")
        await store.flush(10)
        async with tables(cenote_servers, store) as sql:
            inside = "value->'$loro'->'value'"
            query = f"SELECT {inside}->>'t', {inside}->'meta'->>'title' FROM {sql.schema}.state WHERE key = 'doc'"
            text, title = await sql.link.fetchrow(query)
        assert sorted(text.split()) == sorted([*names, "late"])
        assert title == "Cave"
        assert held.value == (await yours.get("doc")).value


async def test_the_flow_never_needs_loro(cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as other:
        one = cenote.Document()
        one.doc.get_text("t").insert(0, "hello")
        await store.agent("a").put("doc", one)
        monkeypatch.setitem(sys.modules, "loro", None)
        await store.flush(10)
        await evict_all(store)
        found = await other.agent("a").get("doc")  # hydrated
        assert found.value == {"t": "hello"}
        with pytest.raises(cenote.SetupError, match="cenote\\[documents\\]"):
            await other.agent("a").update("doc", lambda seen: seen.doc.get_text("t").insert(0, "x"))
        monkeypatch.undo()
        await other.agent("a").update("doc", lambda seen: seen.doc.get_text("t").insert(0, "x"))
        assert (await store.agent("a").get("doc")).value == {"t": "xhello"}
