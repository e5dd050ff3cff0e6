"""The verdict: what PostgreSQL holds, read by plain asyncpg, against what the journals promise."""

import json
import zlib
from collections import Counter
from typing import Any, NamedTuple

import asyncpg

from cenote.demo.journal import Book, Place, Promise, digest

_ROWS = """
SELECT r.name, s.key, s.value::text AS value, s.raw, s.epoch, s.version, s.deleted
  FROM {schema}.state AS s JOIN {schema}.registry AS r USING (agent_id)
 WHERE NOT s.quarantined
"""
_COMMITTED = "SELECT coalesce(sum(rows), 0)::bigint FROM {schema}.flushers"


class Loss(NamedTuple):
    """An acknowledged value that PostgreSQL does not hold, and what it holds instead."""

    agent: str
    key: str
    why: str


class Sql:
    """PostgreSQL as any program sees it."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._dsn = dsn
        self._schema = schema

    async def committed(self) -> int:
        """Row versions that flushes have ever committed; the state table itself keeps only the newest of each key."""
        connection = await asyncpg.connect(self._dsn)
        try:
            return int(await connection.fetchval(_COMMITTED.format(schema=self._schema)))
        finally:
            await connection.close()

    async def rows(self) -> dict[Place, Promise]:
        """The version and the fingerprint of every row."""
        return {
            (record["name"], record["key"]): Promise((record["epoch"], record["version"]), _digest(record))
            for record in await self._records("")
        }

    async def shared(self, agent: str) -> dict[Place, Counter[str]]:
        """What the values of an agent that several processes changed have come to."""
        records = await self._records(" AND r.name = $1", agent)
        return {(agent, record["key"]): _parts(value_of(record)) for record in records if not record["deleted"]}

    async def _records(self, condition: str, *arguments: str) -> list["asyncpg.Record"]:
        connection = await asyncpg.connect(self._dsn)
        try:
            return list(await connection.fetch(_ROWS.format(schema=self._schema) + condition, *arguments))
        finally:
            await connection.close()


def _digest(record: "asyncpg.Record") -> str:
    return "deleted" if record["deleted"] else digest(value_of(record))


def value_of(record: "asyncpg.Record") -> Any:
    """A value that is kept in the columns `value` and `raw`."""
    exact = record["raw"]  # only where jsonb would refuse or change the value; large ones are compressed
    if exact is not None:
        exact = exact if exact[:1] in b'{["' else zlib.decompress(exact)
    return json.loads(record["value"] if exact is None else exact)


def _parts(value: Any) -> Counter[str]:
    """A set's elements, or the numbers of a map's counters: JSON that any program can read."""
    if "$orset" in value:
        return Counter(value["$orset"]["items"])
    fields = value["$ormap"]["fields"]
    return Counter({name: one["pncounter"]["value"] for name, one in fields.items() if "pncounter" in one})


def losses(book: Book, rows: dict[Place, Promise]) -> list[Loss]:
    """Every promise that is broken: a key must hold its newest acknowledged write, or a later one that is in doubt."""
    doubts = set(book.doubts.values())
    found = []
    for place, promise in book.promises.items():
        row = rows.get(place)
        if row is None:
            found.append(Loss(*place, "no row"))
        elif row.version < promise.version:
            found.append(Loss(*place, f"version {row.version} is older than {promise.version}"))
        elif row.version == promise.version and row.digest != promise.digest:
            found.append(Loss(*place, "another value under the same version"))
        elif row.version > promise.version and (place, row.digest) not in doubts:
            found.append(Loss(*place, f"version {row.version} was written by nobody"))
    return found


def shared_losses(book: Book, held: dict[Place, Counter[str]]) -> list[Loss]:
    """Where a value that several processes changed holds less than they were promised, or more than they ever added."""
    doubts: dict[Place, Counter[str]] = {}
    for place, parts in book.shares_in_doubt.values():
        doubts.setdefault(place, Counter()).update(parts)
    found = []
    for place in book.shared.keys() | doubts.keys() | held.keys():
        acked, doubt, have = (those.get(place, Counter()) for those in (book.shared, doubts, held))
        for name in sorted(acked.keys() | have.keys()):
            least, most = acked[name], acked[name] + doubt[name]
            if not least <= have[name] <= most:
                found.append(Loss(*place, f"{name}: {have[name]}, though {least} to {most} were added"))
    return found


def differences(state: dict[Place, str], rows: dict[Place, Promise]) -> list[Loss]:
    """Where agents that were read through cenote (fingerprints in `state`) show something else than their rows."""
    agents = {agent for agent, _ in state}
    expected = {place: row.digest for place, row in rows.items() if place[0] in agents}
    unlike = sorted(place for place in expected.keys() | state.keys() if expected.get(place) != state.get(place))
    return [Loss(*place, "was read as another value than its row has") for place in unlike]
