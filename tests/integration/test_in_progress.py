"""What a flusher works on for longer than `ACK_WAIT_S` is not delivered to anybody else meanwhile (I16; flow rule
18)."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import pytest

import cenote
from cenote import limits
from cenote.engine import hand
from cenote.kv.consumer import Pull
from cenote.store import Store
from cenote.testing import FaultProxy, TestServers
from witness import another, at, demand, reached, toothed


def the_word_that_it_is_in_progress(patch: pytest.MonkeyPatch) -> None:
    """A flusher says nothing between a delivery and its ack."""
    patch.setattr(hand, "progress_many", lambda *_, **__: None)


async def deliveries(store: Store) -> int:
    """How often the durable has handed out any entry, to whomever."""
    core = store._core
    info: dict[str, Any] = await core.link.api(f"CONSUMER.INFO.{core.stream.name}.{core.durable_name}")
    return int(info["delivered"]["consumer_seq"])


@pytest.mark.judge
@toothed(the_word_that_it_is_in_progress)
async def test_a_statement_that_takes_long_is_not_done_by_two(cenote_servers: TestServers) -> None:
    """The network holds the statement for longer than the server waits for an ack; another process is there to take
    what the server gives it."""
    async with FaultProxy(urlsplit(cenote_servers.sql_dsn).port or 0) as proxy:
        settings = cenote_servers.by_url(sql_port=proxy.port, flush__drain_ms=0)
        async with cenote.open(**settings) as store, another(store) as other:
            agent = store.agent("long")
            await agent.put("before", 1, durability="sql")
            before, taken = await deliveries(store), []
            with at() as crossed:
                proxy.hold()
                receipt = await agent.put("k", 1)
                await reached(lambda: crossed.get("flush.taken"), "a flush that holds the entry")
                assert store._core.durable_name is not None
                pull = Pull(
                    other._core.link, store._core.stream.name, store._core.durable_name,
                    lambda *given: taken.append(given[0]), batch=10, credit=10,
                )  # fmt: skip
                pull.start()
                try:
                    await asyncio.sleep(limits.ACK_WAIT_S * 1.5)
                    again = await deliveries(store) - before - 1
                finally:
                    await pull.stop()
                    proxy.heal()
            demand(not taken, "I16: another process was given what a flusher is working on")
            demand(again == 0, f"I16: what a flusher is working on was delivered {again} more times")
            await receipt.durable(20)
            assert crossed["flush.taken"] == 1
