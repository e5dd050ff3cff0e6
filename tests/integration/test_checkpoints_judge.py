"""200 checkpoints beside writers, evictions, sleep and flushers that are killed; and what checkpoints cost."""

import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from checkpoint_movers import AGENT, EACH, KEYS

import cenote
from cenote.agent import AgentState
from cenote.engine.checkpoint import Checkpoint
from cenote.kv.message import republished_sequence
from cenote.model import key as keys
from cenote.model import value as values
from cenote.naming import AGENT_STATE
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, demand, in_kv, reached, tables

_MOVERS = Path(__file__).with_name("checkpoint_movers.py")


class Feed:
    """Every message of the stream by its sequence, as the server republishes it."""

    def __init__(self, store: Store) -> None:
        self.messages: dict[int, tuple[str, bytes]] = {}
        self._prefix = store.config.names.republished(AGENT_STATE)
        self._ear = store._core.link.subscribe(self._prefix + ">", self._heard)

    def _heard(self, subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        self.messages[republished_sequence(header)] = subject.decode(), payload

    def agent_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        """The bank's keys as the stream had them at each of these positions, which grow."""
        head, sequence = f"{self._prefix}{AGENT}.", 0
        found: dict[str, Any] = {}
        for position in positions:
            while sequence < position:
                sequence += 1
                subject, payload = self.messages[sequence]  # a gap would be a KeyError: the test needs all of it
                if subject.startswith(head):
                    found[keys.decode_token(subject[len(head) :])] = values.decode("j", payload)
            yield dict(found)


async def held(agent: AgentState, mark: Checkpoint) -> dict[str, Any]:
    """What a checkpoint holds."""
    pages = [page async for page in agent._machines.checkpoints.fold(agent._agent, mark.seq)]
    return {kept.key: values.decode(kept.codec, kept.body) for page in pages for kept in page}


@asynccontextmanager
async def process(role: str, settings: dict[str, Any]) -> Any:
    """One of the workers; killed at the end."""
    path = os.pathsep.join(path for path in sys.path if path)
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(_MOVERS), role, json.dumps(settings), stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"ready\n"
        yield child
    finally:
        child.kill()
        await child.wait()


async def _flushers(settings: dict[str, Any]) -> None:
    """One flusher after the other, each killed in the midst of its work; some live long enough to evict."""
    for life_s in cycle((2, 5)):
        async with process("flusher", settings):
            await asyncio.sleep(life_s)


async def _to_bed(agent: AgentState, slept: list[int]) -> None:
    """The agent is put aside again and again; whoever writes or reads wakes it."""
    while True:
        with suppress(cenote.CenoteError):  # flushers are killed, and one who waits for them is told so
            slept.append((await agent.sleep(4)).entries)
        await asyncio.sleep(0.2)


@pytest.mark.judge
async def test_200_checkpoints_beside_movers_are_each_of_one_moment(cenote_servers: TestServers) -> None:
    fresh = cenote_servers.fresh(state__ttl_s=2)
    settings = {name: str(one) if isinstance(one, Path) else one for name, one in fresh.items()}
    movers = [f"mover{n}" for n in range(4)]
    async with cenote.open(**settings, flush__enabled=False) as store, another(store) as other:
        feed = Feed(store)
        agent, same = store.agent(AGENT), other.agent(AGENT)
        await agent.put_many(dict.fromkeys(KEYS, EACH), atomic=True)
        await agent.put_many({f"cold{n}": n for n in range(100)})
        async with asyncio.TaskGroup() as group:
            slept: list[int] = []
            beside = [group.create_task(one) for one in (_flushers(settings), _to_bed(same, slept))]
            marks = await _beside([agent, same], movers, settings)
            for task in beside:
                task.cancel()
        assert sum(slept) > 0, "it never slept"
        kinds = {mark.parent is None for mark in marks}
        assert kinds == {True, False}
        newest = max(mark.version.revision for mark in marks)
        await reached(lambda: max(feed.messages) >= newest, "the feed")
        marks.sort(key=lambda mark: mark.version)
        assert [mark.seq for mark in marks] == list(range(1, 201))
        for mark, was in zip(marks, feed.agent_at([mark.version.revision for mark in marks]), strict=True):
            found = await held(agent, mark)
            total = sum(found[key] for key in KEYS)
            demand(total == EACH * len(KEYS), f"I9: checkpoint {mark.seq} is torn: {total}")
            demand(found == was, f"I9: checkpoint {mark.seq} is no prefix of the stream: {found} is not {was}")
        assert await in_kv(agent, "cold1") is None, "nothing had left KV"
        for mark in marks[::10]:
            await agent.restore(mark)
            found = {key: value async for key, value in same.items()}
            demand(found == await held(agent, mark), f"I9: the restore of checkpoint {mark.seq} is not its cut")
        print(f"{len(marks)} checkpoints of {len(found)} keys among {len(feed.messages)} messages")


async def _beside(agents: list[AgentState], movers: list[str], settings: dict[str, Any]) -> list[Checkpoint]:
    """200 checkpoints, through two stores, while everybody works."""
    async with AsyncExitStack() as all_of_them:
        await asyncio.gather(*(all_of_them.enter_async_context(process(mover, settings)) for mover in movers))
        marks = []
        for number in range(200):
            marks.append(await agents[number // 3 % 2].checkpoint(f"number {number}"))
            await asyncio.sleep(0.03)
        return marks


@pytest.mark.judge
async def test_what_100_checkpoints_of_1_000_keys_take(cenote_servers: TestServers) -> None:
    """A hundredth changes between two: at most a tenth of the bytes of whole states as jsonb, and growth by changes."""
    dice = random.Random(7)

    def value(step: int) -> dict[str, object]:
        return {"goal": "map the cave", "step": step, "notes": "".join(dice.choices("abcdefghij klmnop", k=110))}

    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("scout")
        state = {f"key-{number}": value(0) for number in range(1_000)}
        await agent.put_many(state)
        await sql.link.execute(f"CREATE TABLE {sql.schema}.whole_states (n integer PRIMARY KEY, state jsonb)")
        taken: list[int] = []
        ours_s, theirs_s = [], []
        for number in range(100):
            changed = {f"key-{dice.randrange(1_000)}": value(number) for _ in range(10)}
            await agent.put_many(changed)
            state |= changed
            began = time.perf_counter()
            await agent.checkpoint()
            ours_s.append(time.perf_counter() - began)
            began = time.perf_counter()
            read = {key: one async for key, one in agent.items()}
            statement = f"INSERT INTO {sql.schema}.whole_states VALUES ($1, $2)"
            await sql.link.execute(statement, number, json.dumps(read))
            theirs_s.append(time.perf_counter() - began)
            assert read == state
            sizes = [f"pg_total_relation_size('{sql.schema}.{table}')" for table in ("checkpoints", "checkpoint_parts")]
            taken.append(await sql.link.fetchval(f"SELECT {' + '.join(sizes)}"))
        whole = await sql.link.fetchval(f"SELECT pg_total_relation_size('{sql.schema}.whole_states')")
        faster = statistics.median(theirs_s) / statistics.median(ours_s)
        print(f"{whole / taken[-1]:.1f} times smaller, saved {faster:.1f} times faster than reading and inserting all")
        assert taken[-1] * 10 <= whole
        assert taken[99] - taken[49] <= 1.5 * taken[49]
