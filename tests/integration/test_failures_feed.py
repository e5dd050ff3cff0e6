"""News of writes that never arrive: L1 notices (I4, flow rule 10, second half), whichever message was lost."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

import cenote
from cenote.agent import AgentState
from cenote.engine.coherence import Coherence
from cenote.kv.message import republished_sequence
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, demand, eventually, reached, toothed

QUICK = {"flush__drain_ms": 0, "flush__enabled": False, "kv__fast_lane": True}  # whose handlers `deaf` replaces


@contextmanager
def deaf(store: Store) -> Iterator[set[int]]:
    """One process's feed loses every message, as a core subscription may; yields their sequences."""
    feed = store._core.coherence._feed
    assert feed is not None
    subscription = feed._subscription
    handlers: dict[int, Any] = store._core.link._connection.road._handlers  # type: ignore[union-attr]  # the fast lane
    lost: set[int] = set()
    plain = handlers[subscription.sid]
    handlers[subscription.sid] = lambda subject, reply, header, payload: lost.add(republished_sequence(header))
    try:
        yield lost
    finally:
        handlers[subscription.sid] = plain


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_hole_between_two_events(patch: pytest.MonkeyPatch) -> None:
    """The highest number that the feed has shown is all that is known."""
    plain = Coherence._event

    def event(self: Coherence, subject: str, sequence: int, header: bytes, payload: bytes) -> None:
        self.seen = max(self.seen, sequence - 1)
        plain(self, subject, sequence, header, payload)

    patch.setattr(Coherence, "_event", event)


def the_last_sequence_of_the_leader(patch: pytest.MonkeyPatch) -> None:
    """Nobody compares what the feed has shown with what the leader holds."""
    plain = Coherence.probed

    def probed(self: Coherence, last_sequence: int) -> None:
        self.seen = max(self.seen, self._owed)
        plain(self, last_sequence)

    patch.setattr(Coherence, "probed", probed)


# --- the tests ----------------------------------------------------------------------------------------------


@toothed(the_hole_between_two_events)
async def test_i4_a_lost_event_is_noticed_by_the_next_one(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as reader:
        writer, mirror = store.agent("i4"), reader.agent("i4")
        await writer.put("k", "old")
        assert await mirror.get("k") == "old"
        async with watching(reader, mirror) as told:
            with deaf(reader) as lost:
                newer = await writer.put("k", "new")
                await reached(lambda: newer.version.revision in lost, "the loss")
            later = await writer.put("other", 1)
            await reached(lambda: reader._core.coherence.seen >= later.version.revision, "the next event")
            demand(await mirror.get("k") == "new", "I4: L1 holds what was overwritten two events ago")

            async def complete() -> bool:
                return {("k", "new"), ("other", 1)} <= {(entry.key, entry.value) for entry in told}

            await eventually(complete, "I4: a watch has a silent gap")


@toothed(the_last_sequence_of_the_leader)
async def test_i4_the_loss_of_the_last_event_is_noticed_by_the_probe(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as reader:
        writer, mirror = store.agent("i4"), reader.agent("i4")
        await writer.put("k", "old")
        assert await mirror.get("k") == "old"
        with deaf(reader) as lost:
            newer = await writer.put("k", "new")
            await reached(lambda: newer.version.revision in lost, "the loss")
        for _ in range(2):  # the one that is told of the write, and the one that asks whether it was shown
            await reader._core.probe_once()
        demand(await mirror.get("k") == "new", "I4: L1 holds what was overwritten two probes ago")


async def test_i4_a_feed_without_losses_has_no_gaps(cenote_servers: TestServers) -> None:
    """Refused writes, deletes and hydrations leave no hole in the numbers; else L1 would be dropped all the time."""
    async with cenote.open(**cenote_servers.fresh(flush__drain_ms=0)) as store, another(store) as reader:
        writer, mirror = store.agent("i4"), reader.agent("i4")
        assert await mirror.get("k") is None
        async with watching(reader, mirror) as watched:
            before = reader._core.coherence.gaps
            for number in range(200):
                await asyncio.gather(writer.put("k", number), writer.put(f"k{number % 7}", number), mirror.get("k"))
                with pytest.raises(cenote.ConflictError):
                    await writer.put("k", -1, if_version=0)
                if number % 20 == 0:
                    await writer.delete(f"k{number % 7}")
                    await reader._core.probe_once()
            last = await writer.put("k", "last")
            await reached(lambda: reader._core.coherence.seen >= last.version.revision, "the last event")
            assert reader._core.coherence.gaps == before
            await reached(lambda: watched and watched[-1].value == "last", "the watch's last event")


@asynccontextmanager
async def watching(store: Store, agent: AgentState) -> AsyncIterator[list[cenote.Entry]]:
    """What a watch of the agent tells, from now on."""
    told: list[cenote.Entry] = []

    async def watch() -> None:
        async for entry in agent.watch():
            told.append(entry)

    task = asyncio.create_task(watch())
    await reached(lambda: store._core.coherence.listeners, "the watch")
    await agent.put("begun", True)  # it listens before it knows where it begins
    await reached(lambda: told, "the first event of the watch")
    told.clear()
    try:
        yield told
    finally:
        task.cancel()
