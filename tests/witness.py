"""What the tests of invariants look with, and how they prove that they would see.

A broken invariant is a `Violation`; a fault that did not hit is an ordinary AssertionError. `toothed` runs a test as
it is, and, for the judge, once without each of the rules it names: that run must end in a Violation, so a test which
would pass without the rule is itself red.
"""

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import pytest

import cenote
from cenote import points
from cenote.agent import AgentState
from cenote.kv.message import Message
from cenote.model.key import sql_key
from cenote.store import Store
from cenote.testing import TestServers

Removal = Callable[[pytest.MonkeyPatch], None]
Test = Callable[..., Awaitable[None]]

_patience_s = 20.0


class Violation(AssertionError):
    """An invariant does not hold; the message begins with its number."""


def demand(condition: object, invariant: str) -> None:
    """The invariant holds now."""
    if not condition:
        raise Violation(invariant)


async def eventually(condition: Callable[[], Awaitable[object]], invariant: str) -> None:
    """The invariant holds before patience ends (shorter where it is expected not to)."""
    until = time.monotonic() + _patience_s
    while not await condition():
        if time.monotonic() > until:
            raise Violation(invariant)
        await asyncio.sleep(0.01)


async def reached(condition: Callable[[], Awaitable[object] | object], what: str, within_s: float = 20) -> None:
    """Wait for something that the test itself needs; an ordinary failure if it does not come."""
    until = time.monotonic() + within_s
    while True:
        now = condition()
        if await now if inspect.isawaitable(now) else now:
            return
        assert time.monotonic() < until, f"never reached: {what}"
        await asyncio.sleep(0.005)


def toothed(*removals: Removal, tries: int = 3) -> Callable[[Test], Test]:
    """Run the test, then again without each rule: then one of at most `tries` runs must end in a Violation. Any other
    end is a run that showed nothing: its order happened to need no rule, or the fault missed."""

    def wrap(test: Test) -> Test:
        @functools.wraps(test)
        async def run(without: Removal | None, monkeypatch: pytest.MonkeyPatch, **fixtures: Any) -> None:
            if without is None:
                await test(**fixtures)
                return
            without(monkeypatch)
            monkeypatch.setattr("witness._patience_s", 1.5)
            ends = []
            for _ in range(tries):
                try:
                    await test(**fixtures)
                    ends.append("all went well")
                except Violation as violation:
                    print("seen:", violation)
                    return
                except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  # told below, if nothing else is seen
                    ends.append(f"{type(error).__name__}: {error}")
            pytest.fail("the rule was taken out, and nothing was violated:\n" + "\n".join(ends))

        own = inspect.Parameter
        extra = [own(name, own.KEYWORD_ONLY) for name in ("without", "monkeypatch")]
        parameters = [one.replace(kind=own.KEYWORD_ONLY) for one in inspect.signature(test).parameters.values()]
        run.__signature__ = inspect.Signature([*parameters, *extra])  # type: ignore[attr-defined]  # what pytest reads
        names = ["whole", *(f"without {one.__name__.replace('_', ' ').strip()}" for one in removals)]
        without = [pytest.param(one, marks=pytest.mark.judge) for one in removals]
        return pytest.mark.parametrize("without", [None, *without], ids=names)(run)

    return wrap


@contextmanager
def at(*, hold: bool = False, **actions: Callable[[], Awaitable[object]]) -> Iterator[dict[str, int]]:
    """Let an action happen at the first crossing of a point (`flush_taken=…` is the point "flush.taken"); yields the
    number of crossings by point. With `hold` nobody else crosses the point before the action is done."""
    crossings: dict[str, int] = {}
    done = asyncio.Event()

    async def hook(name: str) -> None:
        crossings[name] = crossings.get(name, 0) + 1
        action = actions.get(name.replace(".", "_"))
        if action is None:
            return
        if crossings[name] == 1:
            await action()
            done.set()
        elif hold:
            await done.wait()

    points.hook, points.armed = hook, True
    try:
        yield crossings
    finally:
        points.hook, points.armed = None, False


class Tables:
    """PostgreSQL as an outsider sees it: one plain connection, our schema."""

    def __init__(self, link: asyncpg.Connection, schema: str) -> None:
        self.link = link
        self.schema = schema

    async def row(self, agent: AgentState, key: str) -> asyncpg.Record | None:
        """A key's row of `state`."""
        return await self.link.fetchrow(
            f"SELECT value::text, raw, epoch, version, deleted, quarantined FROM {self.schema}.state"
            " WHERE agent_id = $1 AND key = $2", agent.id, sql_key(key),
        )  # fmt: skip

    async def value(self, agent: AgentState, key: str) -> str | None:
        """The JSON text of a live row."""
        row = await self.row(agent, key)
        return None if row is None or row["deleted"] else row["value"]

    async def audit(self) -> None:
        """From now on `history()` holds every version that a row of `state` ever had. A tombstone may be collected, but
        what is inserted afterwards must be newer; any other row that is removed counts as gone back."""
        await self.link.execute(f"""
            CREATE TABLE {self.schema}.audit (id bigserial, agent_id uuid, key text, epoch bigint, version bigint,
              value text, old_epoch bigint, old_version bigint);
            CREATE INDEX ON {self.schema}.audit (agent_id, key, epoch, version);
            CREATE FUNCTION {self.schema}.watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF TG_OP = 'DELETE' THEN
                INSERT INTO {self.schema}.audit (agent_id, key, epoch, version, old_epoch, old_version)
                SELECT OLD.agent_id, OLD.key, -1, -1, OLD.epoch, OLD.version WHERE NOT OLD.deleted;
              ELSIF TG_OP = 'INSERT' THEN
                INSERT INTO {self.schema}.audit (agent_id, key, epoch, version, value, old_epoch, old_version)
                SELECT NEW.agent_id, NEW.key, NEW.epoch, NEW.version, NEW.value::text, last.epoch, last.version
                  FROM (SELECT) AS always LEFT JOIN (
                    SELECT epoch, version FROM {self.schema}.audit WHERE agent_id = NEW.agent_id AND key = NEW.key
                     ORDER BY epoch DESC, version DESC LIMIT 1) AS last ON true;
              ELSE
                INSERT INTO {self.schema}.audit (agent_id, key, epoch, version, value, old_epoch, old_version)
                VALUES (NEW.agent_id, NEW.key, NEW.epoch, NEW.version, NEW.value::text, OLD.epoch, OLD.version);
              END IF;
              RETURN NULL;
            END $$;
            CREATE TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON {self.schema}.state
              FOR EACH ROW EXECUTE FUNCTION {self.schema}.watch();
        """)

    async def history(self) -> list[asyncpg.Record]:
        """Every version of every row since `audit()`, in the order in which rows took them."""
        return list(await self.link.fetch(f"SELECT * FROM {self.schema}.audit ORDER BY id"))

    async def demand_monotonic(self) -> int:
        """I3: no row ever went back; the number of changes looked at."""
        history = await self.history()
        back = [
            dict(one)
            for one in history
            if (one["epoch"], one["version"]) < (one["old_epoch"] or 0, one["old_version"] or 0)
        ]
        demand(not back, f"I3: SQL went back: {back[:3]}")
        return len(history)


@asynccontextmanager
async def tables(servers: TestServers, store: Store) -> AsyncIterator[Tables]:
    """PostgreSQL's tables of an open store."""
    link = await asyncpg.connect(servers.sql_dsn)
    try:
        yield Tables(link, store.config.names.schema("agents"))
    finally:
        await link.close()


@asynccontextmanager
async def another(store: Store, **overrides: Any) -> AsyncIterator[Store]:
    """A second user of the same store, as another process would open it: own connection, own empty L1."""
    kv, sql = store._core.config.kv, store._core.config.sql
    assert kv.url is not None
    assert sql.url is not None
    settings: dict[str, Any] = {
        "kv": kv.url.get_secret_value(), "sql": sql.url.get_secret_value(), "namespace": store.config.namespace,
        "kv__user": kv.user, "kv__password": kv.password and kv.password.get_secret_value(),
        "flush__enabled": False, "flush__drain_ms": 0, "state__ttl_s": store.config.state.ttl_s,
        "kv__fast_lane": kv.fast_lane,
    }  # fmt: skip
    async with cenote.open(**(settings | overrides)) as other:
        yield other


async def evict_all(store: Store) -> int:
    """Remove everything from KV that SQL has, as the evictor does when its age allows it; the number removed."""
    info = await store._core.stream.info()
    await store.flush(20)  # all up to here is in SQL; what others write meanwhile must not be purged
    return await store._core.stream.purge_below(info.last_seq + 1, generation=store._core.link.generation)


async def in_kv(agent: AgentState, key: str) -> Message | None:
    """The message that KV holds of a key."""
    return await agent._core.stream.leader_get(agent._target(key).subject)
