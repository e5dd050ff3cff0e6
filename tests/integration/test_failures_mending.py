"""KV goes back in time: how an epoch begins, what is mended, and who waits for that (I1, I2, I4; flow rule 4, F-wait).
Each test runs again without its rule."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kv_past import again, nobody_flushes, past

import cenote
from cenote.engine import entries, hydrator, reader, rewind, watcher
from cenote.engine.core import Core
from cenote.engine.mender import Mender
from cenote.engine.rewind import Rewound
from cenote.kv.stream import StateStream
from cenote.sql.epochs import EpochTable
from cenote.testing import TestServers
from witness import at, demand, eventually, evict_all, in_kv, reached, tables, toothed

# --- the rules, taken out -----------------------------------------------------------------------------------


def the_comparison_of_the_epoch(patch: pytest.MonkeyPatch) -> None:
    """Whoever notices a rewind raises the epoch, whatever others did meanwhile."""
    plain, one_by_one = EpochTable.insert_epoch, asyncio.Lock()

    async def insert_epoch(self: EpochTable, seen: Any, new: Any) -> bool:
        async with one_by_one:
            newest = (await self.epochs())[-1]
            return await plain(self, (newest.epoch, newest.incarnation or ""), new)

    patch.setattr(EpochTable, "insert_epoch", insert_epoch)


def the_condition(patch: pytest.MonkeyPatch) -> None:
    """A copy is put over whatever is there."""
    plain = StateStream.publish_nowait

    def publish(self: StateStream, *arguments: Any) -> Any:
        return plain(self, *arguments[:4])

    patch.setattr(StateStream, "publish_nowait", publish)


def the_mender(patch: pytest.MonkeyPatch) -> None:
    """KV is taken as it is."""

    async def run(self: Mender) -> int:
        return 0

    patch.setattr(Mender, "run", run)


def the_waiting(patch: pytest.MonkeyPatch) -> None:
    """Whoever is connected reads."""

    async def at_once(core: Core, left_ms: float) -> None: ...

    for user in (reader, hydrator, watcher):
        patch.setattr(user, "until_mended", at_once)


def the_clean_mark(patch: pytest.MonkeyPatch) -> None:
    """A watch takes the copies of the mender for changes."""
    plain = entries.from_message
    patch.setattr(
        watcher.entries,
        "from_message",
        lambda *a: msgspec.structs.replace(plain(*a), clean=False, version=cenote.Version(a[1].newest, a[0].sequence)),
    )


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.mark.judge
@toothed(the_comparison_of_the_epoch)
async def test_two_detectors_begin_one_epoch(cenote_servers: TestServers, tmp_path: Path) -> None:
    """Both have seen the stream end below the high water; one is slow to say so."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, tables(cenote_servers, store) as sql:
            agent = store.agent("two")
            await agent.put("k", "kept")
            kv.remember()
            for number in range(5):
                await agent.put("k", number)
            await store.flush(10)
            async with nobody_flushes(store):
                await kv.rewind(store)
                await agent.put("k", "new")
                found = Rewound(1, (await store._core.stream.info()).last_seq + 1, None)
                seen = asyncio.Barrier(2)
                plain = store._core.table.newest_flushed

                async def both_have_seen(*arguments: Any) -> int:
                    flushed = await plain(*arguments)
                    await seen.wait()
                    return flushed

                store._core.table.newest_flushed = both_have_seen  # type: ignore[method-assign]  # both at once
                await asyncio.gather(rewind.begin(store._core, found), rewind.begin(store._core, found))
            epochs = await store._core.table.epochs()
            demand([one.epoch for one in epochs] == [1, 2], f"I3: one rewind began {len(epochs) - 1} epochs")
            await eventually(lambda: _is(sql, agent, "k", '"new"'), "I1: the new write never reached SQL")


@pytest.mark.judge
@toothed(the_condition)
async def test_a_write_of_the_new_life_is_never_mended_away(cenote_servers: TestServers, tmp_path: Path) -> None:
    """The mender has compared the old entry with SQL when somebody writes the key anew."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, kv.open(flush__enabled=False) as other:
            agent = store.agent("mended")
            await agent.put("k", "old")
            kv.remember()
            await agent.put("k", "newer")
            await store.flush(10)
            with at(mend_compared=lambda: other.agent("mended").put("k", "new")) as crossed:
                await kv.rewind(store, other)
                await reached(lambda: crossed.get("mend.compared"), "the mender at the key")
                demand(await agent.get("k") == "new", "I1: an acknowledged write was mended away")
            await store.flush(20)
            demand(await other.agent("mended").get("k") == "new", "I1: an acknowledged write was mended away")


@toothed(the_mender)
async def test_what_sql_knows_to_be_deleted_or_newer_is_mended(cenote_servers: TestServers, tmp_path: Path) -> None:
    """KV shows a deleted key, an old value, and a mark that says that nobody has the key; SQL knows better."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, kv.open(flush__enabled=False) as other:
            agent = store.agent("known")
            await agent.put("deleted", 1)
            await agent.put("changed", 1)
            kv.remember()
            await agent.delete("deleted")
            await agent.put("changed", 2)
            await agent.put("new", 3, if_version=0)
            await store.flush(10)
            await kv.rewind(store, other)
            late = other.agent("known")
            demand(await late.get("deleted") is None, "I2: a deleted key rose")
            demand(await late.get("changed") == 2, "I1, I4: KV hides what SQL holds")
            demand(await late.get("new") == 3, "I1, I4: KV hides what SQL holds")
            await store.flush(20)
            await evict_all(store)
            async with kv.open(flush__enabled=False) as fresh:
                held = {key: value async for key, value in fresh.agent("known").items()}
                demand(held == {"changed": 2, "new": 3}, f"I1, I2: after eviction there is {held}")


@toothed(the_waiting)
async def test_an_update_waits_for_the_mending(cenote_servers: TestServers, tmp_path: Path) -> None:
    """Else it builds on a value that SQL knows to be old. Nobody flushes: so whoever waits compares."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, kv.open(flush__enabled=False) as other:
            agent = store.agent("wait")
            await agent.put("log", ["a"])
            kv.remember()
            await agent.update("log", lambda log: [*log, "b"])
            await store.flush(10)
            async with nobody_flushes(store):
                await kv.rewind(other, store)
                await other.agent("wait").update("log", lambda log: [*log, "c"])
            await store.flush(20)
            log = await agent.get("log")
            demand(log == ["a", "b", "c"], f"I1: an update built on an old value: {log}")


@pytest.mark.judge
@toothed(the_waiting)
async def test_nobody_can_compare(cenote_servers: TestServers, tmp_path: Path) -> None:
    """No flusher, and no PostgreSQL for the one who asks: the call ends at its deadline and says what is missing."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store:
            await store.agent("alone").put("k", "old")
            kv.remember()
            await store.agent("alone").put("k", "new")
            await store.flush(10)
        kv.go_back()
        lonely = {"flush__enabled": False, "sql": "postgresql://nobody@127.0.0.1:1/none", "sql__migrate": "check"}
        async with kv.open(kv__deadline_ms=2500, kv__request_timeout_ms=1000, **lonely) as other:
            (asked,) = await asyncio.gather(other.agent("alone").get("k"), return_exceptions=True)
            demand(isinstance(asked, cenote.UnavailableError), f"I4: {asked!r} was read, which SQL knows to be old")
            assert "cenote serve" in str(asked)
            receipt = await other.agent("alone").put("k2", "written")  # a plain write reads nothing
            assert receipt.durability == "kv"


@pytest.mark.judge
@toothed(the_clean_mark)
async def test_a_watch_goes_on_across_an_epoch(cenote_servers: TestServers, tmp_path: Path) -> None:
    """It tells each write of the new life, and nothing of what was mended; so does one that resumes."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store, kv.open(flush__enabled=False) as other:
            agent = store.agent("watched")
            for key in ("k", "still"):
                await agent.put(key, "old")
            kv.remember()
            last = (await agent.put("still", "flushed"), await agent.put("k", "flushed"))[1]
            await store.flush(10)
            told: list[tuple[str, Any]] = []
            watching = asyncio.create_task(_note(other.agent("watched"), told, None))
            await reached(lambda: other._core.coherence.listeners, "the watch")
            await kv.rewind(store, other)
            await agent.put("k", "first")
            await store.flush(20)
            await agent.put("k", "second")
            await eventually(lambda: _have(told, ("k", "second")), "no event came after the epoch began")
            assert (await store.stats()).epoch == 2
            resumed: list[tuple[str, Any]] = []
            resuming = asyncio.create_task(_note(other.agent("watched"), resumed, last.version))
            await eventually(lambda: _have(resumed, ("k", "second")), "a watch did not resume across the epoch")
            await agent.put("end", 1)
            await eventually(lambda: _have(told, ("end", 1)), "no event came")
            await eventually(lambda: _have(resumed, ("end", 1)), "no event came")
            for watch in (watching, resuming):
                watch.cancel()
            await asyncio.gather(watching, resuming, return_exceptions=True)
            mended = [one for one in (*told, *resumed) if one[0] == "still"]
            demand(not mended, f"a watch told of what the mender did: {mended}")
            demand(await other.agent("watched").get("still") == "flushed", "I1: KV hides what SQL holds")


def the_repair(patch: pytest.MonkeyPatch) -> None:
    """What is announced is not looked at again."""
    patch.setattr(Core, "announced", property(lambda self: True, lambda self, value: None), raising=False)


@pytest.mark.judge
@toothed(the_repair)
async def test_an_announcement_that_is_lost_is_made_again(cenote_servers: TestServers, tmp_path: Path) -> None:
    """The stream's metadata is read, changed and written: whoever is slow may write over it."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store:
            await store.agent("again").put("k", 1)
            await store.flush(10)
            await store._core.stream.update_metadata({"cenote.mended": ""})

            async def announced() -> bool:
                return bool((await store._core.stream.info()).metadata.get("cenote.mended"))

            await eventually(announced, "I16: who opens the store now waits for ever")


@pytest.mark.judge
async def test_waiting_for_sql_across_a_rewind_ends_in_an_unknown_outcome(
    cenote_servers: TestServers, tmp_path: Path
) -> None:
    """F-conn: nobody can say what the sequence names by now."""
    with past(tmp_path, cenote_servers) as kv:
        async with kv.open() as store:
            kv.remember()
            async with nobody_flushes(store):
                receipt = await store.agent("unknown").put("k", 1)
                waiting = [asyncio.create_task(receipt.durable(20)), asyncio.create_task(store.flush(20))]
                await asyncio.sleep(0.05)  # both wait; if they do not yet, they end in the same way
                before = store._core.link.generation
                await asyncio.to_thread(kv.go_back)
                outcomes = await asyncio.gather(*waiting, return_exceptions=True)
                await again(store, before)
            assert [type(one) for one in outcomes] == [cenote.OutcomeUnknownError] * 2
            assert await in_kv(store.agent("unknown"), "k") is None


async def _note(agent: Any, told: list[tuple[str, Any]], since: Any) -> None:
    async for entry in agent.watch(since=since):
        told.append((entry.key, entry.value))


async def _have(told: list[tuple[str, Any]], wanted: tuple[str, Any]) -> bool:
    return wanted in told


async def _is(sql: Any, agent: Any, key: str, text: str) -> bool:
    return bool(await sql.value(agent, key) == text)
