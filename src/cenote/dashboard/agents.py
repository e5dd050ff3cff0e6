"""What the pages about agents say, as plain documents: who they are, and what each tier holds of their keys."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from cenote.dashboard.differing import differences
from cenote.dashboard.pages import PAGE
from cenote.dashboard.parts import LOOK_S, NATS, POSTGRESQL, first, part
from cenote.dashboard.showing import decoded, moment, shown, when
from cenote.engine.sighting import Sighting, in_kv, in_memory, in_sql
from cenote.errors import NotFoundError, UnavailableError
from cenote.model import key as keys
from cenote.model.entry import Stored
from cenote.store import Store

_AT_ONCE: Final = 16  # keys whose values are held at a time: each may have half a MiB
_LISTED_MAX: Final = 1_000  # entries of an agent that are listed from KV while PostgreSQL is away
_PAST_MAX: Final = 50
PAST_BYTES_MAX: Final = 65_536  # a version that is kept in more is not read


class AgentPages:
    """The documents of single agents."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._core = store._machines.core

    async def agent(self, name: str, prefix: str, after: str, *, limit: int = PAGE) -> dict[str, Any]:
        """One agent: a page of its keys, each as the three tiers hold it."""
        store, agent = self._store, self._store.agent(name)
        ref = agent._agent
        rows, dirty, phase, registered, checkpoints, events = await asyncio.gather(
            part(self._core.table.keys_page(ref.id, keys.sql_key(after), keys.sql_key(prefix), limit + 1), POSTGRESQL),
            part(store.dirty(name, 1_000), NATS, LOOK_S), part(agent.phase(), f"{NATS} and {POSTGRESQL}"),
            part(self._core.table.registered(ref.id), POSTGRESQL), self._checkpoints(agent), self._events(agent),
        )  # fmt: skip
        held = [keys.from_sql_key(row) for row in rows["value"] or []]
        more = held[limit - 1] if len(held) > limit else None
        late = {one.key for one in dirty["value"] or []}
        if rows["error"]:
            listed = await part(self._in_kv(ref), NATS)
            late |= set(listed["value"] or [])
        names = _merged(held[:limit], late, prefix, after, more)
        cut = len(names) > limit  # NATS knows of more than PostgreSQL's page had
        names = names[:limit]
        more = names[-1] if cut else more
        if not (names or after or prefix or registered["value"] or registered["error"] or dirty["error"]):
            raise NotFoundError("there is no such agent")
        seen, failed = await self._sighted(ref, names)
        return {
            "name": agent.name, "id": str(agent.id), "prefix": prefix, "next": more,
            "phase": None if phase["value"] is None else str(phase["value"]),
            "dirty": None if dirty["value"] is None else len(dirty["value"]),
            "dirty_cut": bool(dirty["value"] is not None and dirty["value"].cut),
            "keys": seen, "error": first(rows["error"], dirty["error"], *failed),
            "checkpoints": checkpoints, "events": events,
        }  # fmt: skip

    async def key(self, name: str, key: str) -> dict[str, Any]:
        """One key: what each tier holds, and what is still known of its past, each version with what it changed."""
        agent = self._store.agent(name)
        (tiers, errors), past = await asyncio.gather(
            self._sighted(agent._agent, [key]), part(agent._past.versions(key, PAST_BYTES_MAX), POSTGRESQL)
        )
        (one,) = tiers
        if all(errors) and one["memory"] is None:
            raise UnavailableError(first(*errors) or "")
        if not any(errors) and one["memory"] is None and one["kv"] is None and one["sql"] is None:
            raise NotFoundError("there is no such key")
        past["value"] = await asyncio.to_thread(_past, key, past["value"] or [])
        return {"agent": agent.name, "key": key, "tiers": one, "error": first(*errors), "history": past}

    async def _in_kv(self, ref: keys.AgentRef) -> list[str]:
        """Keys that NATS holds of an agent, in no order: some, where there are very many."""
        found: list[str] = []
        async with aclosing(self._live(ref)) as live:  # type: ignore[type-var]  # a generator, which can be closed
            async for key in live:
                found.append(key)
                if len(found) == _LISTED_MAX:
                    break
        return found

    async def _live(self, ref: keys.AgentRef) -> AsyncIterator[str]:
        async for message in self._core.live(self._core.agent_filter(ref)):
            key = keys.decode_token(self._core.split(message.subject)[1])
            if key is not None:
                yield key

    async def _sighted(self, ref: keys.AgentRef, names: list[str]) -> tuple[list[dict[str, Any]], list[str | None]]:
        """How these keys stand, and what went wrong in NATS and in PostgreSQL: a few values are held at a time."""
        found: list[dict[str, Any]] = []
        kv_error: str | None = None
        sql_error: str | None = None
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            memory = in_memory(self._core, ref, some)
            kv, sql = await asyncio.gather(
                part(_none() if kv_error else in_kv(self._core, ref, some), NATS),
                part(_none() if sql_error else in_sql(self._core, ref, some), POSTGRESQL),
            )
            kv_error, sql_error = kv_error or kv["error"], sql_error or sql["error"]
            for key in some:
                one = Sighting(
                    key, memory.get(key), (kv["value"] or {}).get(key), (sql["value"] or {}).get(key),
                    whole=not (kv_error or sql_error),
                )  # fmt: skip
                found.append(self._sighting(one))
        return found, [kv_error, sql_error]

    def _sighting(self, one: Sighting) -> dict[str, Any]:
        return {
            "key": one.key, "differs": one.differs, "compared": one.whole, "memory": self._held(one.key, one.memory),
            "kv": self._held(one.key, one.kv), "sql": self._held(one.key, one.sql),
        }  # fmt: skip

    def _held(self, key: str, stored: Stored | None) -> dict[str, Any] | None:
        if stored is None:
            return None
        age_ms = max(0, self._core.now_ms() - stored.written_us // 1000)
        expires = None if stored.expires_ms is None else moment(stored.expires_ms * 1000)
        told = {"version": str(stored.version), "age_ms": age_ms, "deleted": stored.deleted, "expires_at": expires}
        return told | {"value": None if stored.deleted else decoded(key, stored), "bytes": len(stored.body)}

    async def _checkpoints(self, agent: Any) -> dict[str, Any]:
        found = await part(agent.checkpoints(limit=20), POSTGRESQL)
        found["value"] = [
            {"id": str(one.id), "seq": one.seq, "at": when(one.at), "label": one.label,
             "whole": one.parent is None, "changed": one.changed, "removed": one.removed, "bytes": one.bytes}
            for one in (found["value"].items if found["value"] else [])
        ]  # fmt: skip
        return found

    async def _events(self, agent: Any) -> dict[str, Any]:
        found = await part(agent.lifecycle_events(20), POSTGRESQL)
        found["value"] = [
            {"event": str(one.event), "at": when(one.at), "details": one.details} for one in found["value"] or []
        ]
        return found


async def _none() -> dict[str, Stored]:
    return {}


def _merged(held: list[str], late: set[str], prefix: str, after: str, more: str | None) -> list[str]:
    """A page of keys by name, in PostgreSQL's order: what it has there, and what it does not have yet."""
    first, last = keys.sql_key(after), None if more is None else keys.sql_key(more)
    fresh = {key for key in late if key.startswith(prefix) and keys.sql_key(key) > first}
    return sorted(
        {*held, *(key for key in fresh if last is None or keys.sql_key(key) <= last)}, key=keys.sql_key
    )  # fmt: skip


def _past(key: str, versions: Any) -> list[dict[str, Any]]:
    """The newest first, each with what it changed."""
    found: list[dict[str, Any]] = []
    known = list(versions)[-_PAST_MAX - 1 :]
    for place, one in enumerate(known):
        before = known[place - 1] if place else None
        found.append(
            {"version": str(one.version), "written_at": when(one.written_at), "seq": one.seq, "deleted": one.deleted,
             "value": None if one.deleted else shown(key, one.value),
             "changes": None if before is None else differences(
                 key, before.value, one.value, was_deleted=before.deleted, deleted=one.deleted
             )}
        )  # fmt: skip
    return found[::-1][:_PAST_MAX]
