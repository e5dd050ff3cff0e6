"""Large values and errors of the flusher's own: neither may stop anybody's flush (I13, I15, I16)."""

import asyncio
import os
from typing import Any

import pytest

import cenote
from cenote.engine import batch, hand
from cenote.testing import TestServers, tier_of
from witness import demand, reached


async def test_compressed_values_that_are_large_texts_do_not_hold_up_their_neighbours(
    cenote_servers: TestServers,
) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        value = [{"name": f"n{number}", "text": "lorem ipsum dolor sit amet"} for number in range(60_000)]
        large = store.agent("large")
        await asyncio.gather(*(large.put(f"k{number}", value) for number in range(12)))
        receipt = await store.agent("neighbour").put("k", 1)
        await receipt.durable(40)
        await store.flush(40)
        assert await tier_of(store, "large", "k11") == "both"
        assert (await store.stats()).quarantined == 0


@pytest.mark.judge
async def test_what_the_flusher_holds_is_bounded_by_bytes(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cenote.open(**cenote_servers.fresh(flush__enabled=False)) as writer:
        agent = writer.agent("bytes")
        body = os.urandom(300_000)
        for start in range(0, 160, 20):
            await asyncio.gather(*(agent.put(f"k{start + number}", body) for number in range(20)))
        held: list[int] = []
        plain = batch.build

        def spy(deliveries: Any, *rest: Any) -> batch.Batch:
            listed = list(deliveries)
            held.append(sum(len(delivery.message.payload) for delivery in listed))
            return plain(listed, *rest)

        monkeypatch.setattr(hand, "build", spy)
        async with cenote.open(data_dir=writer.servers["data_dir"], namespace=writer.config.namespace) as other:
            await other.flush(60)
        demand(max(held) <= 17 * 2**20, f"I15: {max(held)} bytes in one flush")
        assert sum(held) >= 160 * 300_000


@pytest.mark.judge
async def test_the_flusher_outlives_an_error_of_its_own(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        await store.agent("a").put("k", 1, durability="sql")
        broken: list[int] = []

        def bug(*_: Any) -> None:
            broken.append(1)
            raise KeyError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(hand, "build", bug)
            receipt = await store.agent("a").put("k", 2)
            await reached(lambda: broken, "the flusher meets the error")
        await receipt.durable(20)
        assert "begins anew" in caplog.text
