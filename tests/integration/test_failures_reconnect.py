"""A stream sequence dies with its connection (F-conn of flow rules 1, 6 and 16): the server was killed, lost the end of
its store, and gave the same numbers to other writes."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kv_server import USER, running

import cenote
from cenote.engine import writer
from cenote.engine.barrier import Barrier
from cenote.engine.durability import Durability
from cenote.engine.receipt import Receipt
from cenote.sql.state import StateTable
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, at, demand, reached, toothed


class Rewound(NamedTuple):
    """Two users of one store, and what takes NATS back to the moment when the test began."""

    store: Store
    other: Store
    rewind: Callable[[], Awaitable[None]]
    somebody_flushes: Callable[[], Awaitable[None]]


@asynccontextmanager
async def rewindable(servers: TestServers, directory: Path) -> AsyncIterator[Rewound]:
    """Nobody flushes, so that the numbers of the stream are the test's own, before somebody comes who does."""
    with running(directory) as server:
        settings: dict[str, Any] = {
            "kv": server.url, "kv__user": USER, "kv__password": server.password, "sql": servers.sql_dsn,
            "sql__migrate": "auto", "namespace": servers.fresh()["namespace"], "flush__drain_ms": 0,
        }  # fmt: skip
        async with cenote.open(**settings) as first:
            await first.agent("f").put("begun", True, durability="sql")
        async with (
            AsyncExitStack() as later,
            cenote.open(**settings, flush__enabled=False) as store,
            another(store) as other,
        ):
            shutil.copytree(directory / "store", directory / "older")

            async def rewind() -> None:
                before = [one._core.link.generation for one in (store, other)]
                server.kill()
                shutil.rmtree(directory / "store")
                (directory / "older").rename(directory / "store")
                server.start()
                for one, generation in zip((store, other), before, strict=True):
                    link = one._core.link
                    await reached(lambda link=link, past=generation: link.generation > past, "the next connection")

            async def somebody_flushes() -> None:
                await later.enter_async_context(another(store, flush__enabled=True))

            yield Rewound(store, other, rewind, somebody_flushes)


async def asked(table: StateTable) -> None:
    """Wait until somebody in this process asks SQL what is committed."""
    plain, questions = table.versions, 0

    async def versions(places: Any) -> Any:
        nonlocal questions
        questions += 1
        return await plain(places)

    table.versions = versions  # type: ignore[method-assign]  # looks on, answers nothing
    await reached(lambda: questions > 0, "a question to SQL")
    table.versions = plain  # type: ignore[method-assign]  # as it was


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_whole_entry_compared(patch: pytest.MonkeyPatch) -> None:
    """After a reconnect the number alone says that nothing has changed."""
    patch.setattr(writer, "_same", lambda found, held: found.sequence == held.sequence)


def the_end_of_a_flush_with_its_connection(patch: pytest.MonkeyPatch) -> None:
    """`flush()` goes on waiting for numbers of the connection before."""
    patch.setattr(Barrier, "_same_connection", lambda self: None)


def the_end_of_waiting_with_its_connection(patch: pytest.MonkeyPatch) -> None:
    """A receipt goes on waiting for a number of the connection before."""
    patch.setattr(Durability, "disconnected", lambda self: None)


def the_connection_of_a_receipt(patch: pytest.MonkeyPatch) -> None:
    """A receipt may be asked over any connection."""
    patch.setattr(Receipt, "_generation", property(lambda self: self._core.link.generation, lambda self, value: None))


# --- the tests ----------------------------------------------------------------------------------------------


@toothed(the_whole_entry_compared)
async def test_i12_an_update_never_builds_on_a_number_of_another_connection(
    cenote_servers: TestServers, tmp_path: Path
) -> None:
    async with rewindable(cenote_servers, tmp_path) as (store, other, rewind, somebody_flushes):
        lost = await store.agent("f").put("k", ["lost"])
        receipts: list[cenote.Receipt] = []

        async def in_between() -> None:
            await rewind()
            receipts.append(await other.agent("f").put("k", ["acked"]))
            await somebody_flushes()

        with at(write_compared=in_between):
            entry = await store.agent("f").update("k", lambda value: [*value, "more"])
        assert receipts[0].version.revision == lost.version.revision, "the number was not given out again"
        demand(entry.value == ["acked", "more"], f"I12: an acked write was overwritten unseen: {entry.value}")
        assert await other.agent("f").get("k") == entry.value


@pytest.mark.judge
@toothed(the_end_of_a_flush_with_its_connection, the_end_of_waiting_with_its_connection, the_connection_of_a_receipt)
async def test_i1_nobody_vouches_for_a_number_of_another_connection(
    cenote_servers: TestServers, tmp_path: Path
) -> None:
    """A write was acknowledged and lost; another one got its number and is in SQL."""
    async with rewindable(cenote_servers, tmp_path) as (store, other, rewind, somebody_flushes):
        agent = store.agent("f")
        lost = await agent.put("k", "lost")
        waiting = [asyncio.create_task(agent.flush(20))]
        await asked(store._core.table)
        waiting.append(asyncio.create_task(lost.durable(20)))
        await reached(lambda: bool(store._core.durability), "the receipt waits")
        await rewind()
        again = await other.agent("f").put("k", "acked")
        assert again.version.revision == lost.version.revision, "the number was not given out again"
        await somebody_flushes()
        await again.durable(20)
        waiting.append(asyncio.create_task(lost.durable(20)))
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        for who, outcome in zip(("flush()", "a waiting receipt", "a receipt"), outcomes, strict=True):
            demand(isinstance(outcome, cenote.OutcomeUnknownError), f"I1: {who} vouches for a lost write: {outcome!r}")
