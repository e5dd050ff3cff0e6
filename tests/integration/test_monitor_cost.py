"""What it costs to be watched: CPU time of a put and of a flushed row, and memory in the number of agents and keys."""

import gc
import statistics
import time
import tracemalloc

import pytest

import cenote
from cenote import limits
from cenote.engine.batch import Batch
from cenote.engine.hand import Hand
from cenote.store import Store
from cenote.testing import TestServers

SHARE_MAX = 0.03
ROUNDS = 20
BLOCKS = 16  # of each kind in a round
KEYS = 1_000  # in a block
TRIES = 4  # twenty rounds leave an error of about a percent: then twenty more, and all of them count


def unwatched(patch: pytest.MonkeyPatch) -> None:
    """The flusher tells nobody how late it is."""

    def tell(self: Hand, batch: Batch, delivered: int, took_ms: float) -> None:
        core = self._core
        core.durability.committed(batch.rows)
        if batch.rows:
            self._board.committed_ms = core.link.server_now_ms()
            core.counts.commits += 1
            core.counts.flush_ms += took_ms
            core.counts.flushed += len(batch.rows)
        core.counts.delivered += delivered

    patch.setattr(Hand, "_tell", tell)
    patch.setattr(Hand, "fill_board", lambda self: self._board.count(self._core.counts))


@pytest.mark.judge
@pytest.mark.alone
@pytest.mark.timeout(900)
async def test_watching_costs_little_of_a_put_and_of_a_flushed_row(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds in pairs, watched and not, in one process that writes and flushes. A machine's speed changes within a
    round by more than is looked for here, hence the two take turns block by block. Once a round the store is asked for
    its metrics, as a scrape would."""
    async with cenote.open(**cenote_servers.fresh(flush__drain_ms=0)) as store:
        await cpu_s(store)
        pairs: list[tuple[float, float]] = []
        for _ in range(TRIES):
            pairs += [await pair(store, monkeypatch) for _ in range(ROUNDS)]  # a round that was bad goes on counting
            share = statistics.median(watched / plain for watched, plain in pairs) - 1
            row_us = statistics.median(plain for _, plain in pairs) * 1e6 / KEYS / BLOCKS
            print(f"of {row_us:.1f} µs for a put and its row: {share:+.2%} in {len(pairs)} rounds")
            if share <= SHARE_MAX:
                return
        pytest.fail(f"watching costs {share:.2%}")


async def pair(store: Store, patch: pytest.MonkeyPatch) -> tuple[float, float]:
    """CPU seconds of a round that is watched and of one that is not."""
    watched = plain = 0.0
    gc.collect()
    gc.disable()  # or a collection falls to one of the two
    try:
        for block in range(BLOCKS):
            if block % 2:
                watched += await cpu_s(store)
            with patch.context() as within:
                unwatched(within)
                plain += await cpu_s(store)
            if not block % 2:
                watched += await cpu_s(store)
        began = time.process_time()
        await store.stats()
        return watched + time.process_time() - began, plain
    finally:
        gc.enable()


async def cpu_s(store: Store) -> float:
    """CPU seconds of a block."""
    began = time.process_time()
    await store.agent("ant").put_many({f"k{number}": number for number in range(KEYS)})
    await store.flush(30)
    return time.process_time() - began


@pytest.mark.judge
@pytest.mark.alone
async def test_what_a_look_holds_does_not_grow_with_agents_and_keys(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SCAN_PAGE_KEYS", 200)
    monkeypatch.setattr(limits, "DIRTY_PAGE_ENTRIES", 100)
    peaks = []
    async with cenote.open(**cenote_servers.fresh(flush__enabled=False, flush__drain_ms=0)) as store:
        for agents in (200, 2_000):
            for number in range(agents):
                await store.agent(f"a{number}").put_many({"one": 1, "two": 2})
            peaks.append(await peak_bytes(store))
        assert (await store.stats()).dirty_entries == 4_000
    print(f"bytes at the peak: {peaks}")
    assert peaks[1] < 1.3 * peaks[0]


async def peak_bytes(store: Store) -> int:
    """The most that one look at everything allocates."""
    await store.lagging()  # what is kept for good is made at first use
    gc.collect()
    tracemalloc.start()
    try:
        await store.stats()
        await store.lagging()
        await store.dirty(limit=10)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
