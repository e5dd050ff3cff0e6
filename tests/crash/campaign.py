"""One crash and what must hold after it: seed a store, let a child die on it, open it again, judge."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import child

import cenote
import history
from cenote.engine import entries
from cenote.model import value as values
from cenote.store import Store
from cenote.testing import TestServers
from witness import Tables, Violation, demand, evict_all, in_kv, tables

CHILD = Path(__file__).with_name("child.py")
CONVERGES_S = 20  # I16 promises 10 s; the machine that tests is slower than one that works
L1_LAG_S = 1.5  # the contract of L1: a probe, and the delay of the feed


class Case(NamedTuple):
    """A store that something happened to."""

    settings: dict[str, Any]
    journal: Path


async def seed(servers: TestServers, directory: Path, **overrides: Any) -> Case:
    """A fresh store whose cold keys are in SQL alone, with the audit of SQL's rows switched on."""
    overrides = {"state__ttl_s": 2, "state__tombstone_s": 0.5, "flush__drain_ms": 0} | overrides
    settings = {name: str(one) if name == "data_dir" else one for name, one in servers.fresh(**overrides).items()}
    case = Case(settings, directory / f"{settings['namespace']}.journal")
    journal = history.Journal(case.journal, "seed")
    async with cenote.open(**settings) as store, tables(servers, store) as sql:
        await sql.audit()
        for key in keys():
            if child.owner(key) == child.NEWBORN:
                continue
            intent = journal.begin("write", key, f"seed.{key}")
            await store.agent(child.owner(key)).put(key, f"seed.{key}")
            journal.end(intent)
        assert await evict_all(store) >= len(child.COLD)
    return case


def start(
    case: Case, session: str, *, seconds: float, crash_at: str = "", mutated: bool = False
) -> subprocess.Popen[bytes]:
    """A child at work on the store; it says "working" when it begins."""
    given = {"settings": case.settings, "journal": str(case.journal), "session": session, "seconds": seconds}
    environment = os.environ | ({"CENOTE_CRASH_AT": crash_at} if crash_at else {})
    command = [sys.executable, str(CHILD), json.dumps(given | {"mutation": mutated})]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


def crash(servers: TestServers, directory: Path, crash_at: str, *, mutated: bool = False) -> Case:
    """Seed a store and let a child kill itself at a point; blocks, for a thread."""
    case = asyncio.run(seed(servers, directory))
    with start(case, "child", seconds=25, crash_at=crash_at, mutated=mutated) as process:
        try:
            code = process.wait(40)
        finally:
            process.kill()
    assert code == -signal.SIGKILL, f"the child never crossed {crash_at}: it ended with {code}"
    return case


async def judge(servers: TestServers, case: Case) -> dict[str, int]:
    """Open the store as the next process would, wait until it is at rest, and demand everything; what was looked at."""
    journal = history.Journal(case.journal, "judge")
    async with cenote.open(**case.settings) as store, tables(servers, store) as sql:
        try:
            await store.flush(CONVERGES_S)
        except cenote.NotDurableError:
            raise Violation(f"I16: not at rest after {CONVERGES_S} s: {await store.stats()}") from None
        await read_all(store, journal)
        compared = await compare(store, sql)
        await evict_all(store)
        async with cenote.open(**case.settings) as other:
            await read_all(other, journal)
        changes = await sql.demand_monotonic()
        nameless = await sql.link.fetchval(
            f"SELECT count(*) FROM {sql.schema}.state s LEFT JOIN {sql.schema}.registry r USING (agent_id)"
            " WHERE r.name IS NULL"
        )
    found = history.read(case.journal)
    wrong = history.violations(found, lag_s=L1_LAG_S, exact=("judge", "seed"))
    demand(not wrong, f"I1, I2, I4: {len(wrong)} violations: {wrong[:3]}")
    demand(nameless == 0, f"{nameless} rows belong to agents that are not in the registry")
    acked = history.acked(op for op in found if op.session != "seed")
    assert acked, "the child had nothing acknowledged: this proves nothing"
    return {
        "acked": acked,
        "unknown": sum(op.end == history.FOREVER for op in found),
        "changes": changes,
        "compared": compared,
    }


async def read_all(store: Store, journal: history.Journal) -> None:
    """Every key once, as somebody who has just opened the store sees it."""
    for key in keys():
        intent = journal.begin("read", key)
        journal.end(intent, await store.agent(child.owner(key)).get(key))


async def compare(store: Store, sql: Tables) -> int:
    """KV and SQL agree at rest: what KV holds, SQL holds under the same version; the number of keys compared."""
    compared = 0
    for key in keys():
        agent = store.agent(child.owner(key))
        message, row = await in_kv(agent, key), await sql.row(agent, key)
        if message is None:
            continue
        stored = entries.from_message(message, store._core.epochs)
        if stored.version == entries.ABSENT.version:
            demand(row is None, f"I10: a mark says that SQL has no {key}, and it has one")
            continue
        demand(row is not None, f"I1, I11: {key} at {stored.version} was settled and is not in SQL")
        assert row is not None
        held = cenote.Version(row["epoch"], row["version"])
        demand(held == stored.version, f"I1, I3: {key} is at {stored.version} in KV and at {held} in SQL")
        demand(row["deleted"] == stored.deleted, f"I2: the tiers disagree whether {key} is deleted")
        if not stored.deleted:
            same = json.loads(row["value"]) == values.decode(stored.codec, stored.body)
            demand(same, f"I1: the tiers hold different values of {key} under one version")
        compared += 1
    assert compared, "KV is empty: there was nothing to compare"
    return compared


def keys() -> Iterable[str]:
    """All keys that a child touches."""
    return [*child.COLD, *child.HOT]
