"""What each page says, as plain documents: a page and its JSON are the same, and each part has a time of its own, so
that what is down is told of and hides nothing else."""

import asyncio
import re
from collections.abc import Awaitable
from dataclasses import asdict
from typing import Any, Final
from uuid import UUID

from cenote import config as configs
from cenote import limits
from cenote.engine.conflict_log import Conflict
from cenote.engine.sighting import sighted
from cenote.errors import CenoteError, NotFoundError
from cenote.model import key as keys
from cenote.model import value as values
from cenote.model.entry import Stored, Version, from_us
from cenote.store import Store

PAGE: Final = 50
_PART_S: Final = 2.0
_CHARS_MAX: Final = 4_000
_BODY_MAX: Final = 16_384
_SECRET: Final = re.compile(r"passw|secret|token|api[_-]?key|credential|private", re.IGNORECASE)


async def part(asked: Awaitable[Any]) -> dict[str, Any]:
    """One part of a page: its value, or why there is none."""
    try:
        async with asyncio.timeout(_PART_S):
            return {"value": await asked, "error": None}
    except TimeoutError:
        return {"value": None, "error": f"no answer within {_PART_S:g} s"}
    except NotFoundError:
        raise
    except CenoteError as error:
        return {"value": None, "error": str(error)}


class Pages:
    """The documents of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._core = store._machines.core

    async def overview(self) -> dict[str, Any]:
        """Lag against the window, what waits, health, and who lags most."""
        store = self._store
        stats, health, lagging = await asyncio.gather(part(store.stats()), part(store.health()), part(store.lagging(8)))
        if stats["value"] is not None:
            stats["value"] = asdict(stats["value"])
        if health["value"] is not None:
            health["value"] = {
                "verdict": health["value"].verdict.value,
                "checks": [asdict(one) | {"verdict": one.verdict.value} for one in health["value"].checks],
            }
        if lagging["value"] is not None:
            lagging["value"] = [asdict(one) for one in lagging["value"]]
        return {"window_ms": store.config.flush.window_ms, "stats": stats, "health": health, "lagging": lagging}

    async def agents(self, prefix: str, after: str, *, limit: int) -> dict[str, Any]:
        """A page of agents by name."""
        rows = await part(self._core.table.named(keys.sql_key(prefix), keys.sql_key(after), limit + 1))
        found = rows["value"] or []
        lagging = await part(self._store.lagging(100))
        late = {one.agent: one for one in lagging["value"] or []}
        listed = []
        for row in found[:limit]:
            name = keys.from_sql_key(row.name)
            lag = late.get(name)
            listed.append(
                {
                    "name": name, "id": str(row.agent_id), "type": row.agent_type, "status": row.status,
                    "phase": row.phase or "active", "keys": row.keys, "updated_at": _moment(row.updated_us),
                    "dirty": lag.dirty if lag else 0, "oldest_ms": lag.oldest_ms if lag else 0,
                }
            )  # fmt: skip
        more = listed[-1]["name"] if len(found) > limit else None
        return {"prefix": prefix, "agents": listed, "next": more, "error": rows["error"]}

    async def agent(self, name: str, prefix: str, after: str, *, limit: int) -> dict[str, Any]:
        """One agent: a page of its keys, each as the three tiers hold it."""
        store, agent = self._store, self._store.agent(name)
        ref = agent._agent
        rows, dirty, phase = await asyncio.gather(
            part(self._core.table.keys_page(ref.id, keys.sql_key(after), keys.sql_key(prefix), limit + 1)),
            part(store.dirty(name, 100)), part(agent.phase()),
        )  # fmt: skip
        held = [keys.from_sql_key(row) for row in rows["value"] or []]
        more = held[limit - 1] if len(held) > limit else None
        held = held[:limit]
        fresh = [one.key for one in dirty["value"] or [] if one.key.startswith(prefix) and one.key > after]
        names = sorted({*held, *(key for key in fresh if more is None or key <= more)})
        if not names and not after and not prefix and not await self._known(ref):
            raise NotFoundError("there is no such agent")
        seen = await part(sighted(self._core, ref, names)) if names else {"value": []}
        return {
            "name": agent.name, "id": str(agent.id), "prefix": prefix, "next": more,
            "phase": None if phase["value"] is None else str(phase["value"]), "dirty": len(dirty["value"] or []),
            "keys": [self._sighting(one) for one in seen["value"] or []],
            "error": rows["error"] or seen["error"],
            "checkpoints": await self._checkpoints(agent), "events": await self._events(agent),
        }  # fmt: skip

    async def _known(self, ref: keys.AgentRef) -> bool:
        found = await part(self._core.table.registered(ref.id))
        return found["value"] is not None or found["error"] is not None

    async def _checkpoints(self, agent: Any) -> dict[str, Any]:
        found = await part(agent.checkpoints(limit=20))
        found["value"] = [
            {"id": str(one.id), "seq": one.seq, "at": _when(one.at), "label": one.label,
             "whole": one.parent is None, "changed": one.changed, "removed": one.removed, "bytes": one.bytes}
            for one in (found["value"].items if found["value"] else [])
        ]  # fmt: skip
        return found

    async def _events(self, agent: Any) -> dict[str, Any]:
        found = await part(agent.lifecycle_events(20))
        found["value"] = [
            {"event": str(one.event), "at": _when(one.at), "details": one.details} for one in found["value"] or []
        ]
        return found

    async def key(self, name: str, key: str) -> dict[str, Any]:
        """One key: what each tier holds, and what is still known of its past."""
        agent = self._store.agent(name)
        (one,) = await sighted(self._core, agent._agent, [key])
        if one.memory is None and one.kv is None and one.sql is None:
            raise NotFoundError("there is no such key")
        past = await part(agent.history(key))
        versions = past["value"].versions if past["value"] else ()
        past["value"] = [
            {"version": str(was.version), "written_at": _when(was.written_at), "seq": was.seq,
             "deleted": was.deleted, "value": _shown(key, was.value)}
            for was in reversed(versions)
        ]  # fmt: skip
        return {"agent": agent.name, "key": key, "tiers": self._sighting(one), "history": past}

    def _sighting(self, one: Any) -> dict[str, Any]:
        return {
            "key": one.key, "differs": one.differs, "memory": self._held(one.key, one.memory),
            "kv": self._held(one.key, one.kv), "sql": self._held(one.key, one.sql),
        }  # fmt: skip

    def _held(self, key: str, stored: Stored | None) -> dict[str, Any] | None:
        if stored is None:
            return None
        age_ms = max(0, self._core.now_ms() - stored.written_us // 1000)
        expires = None if stored.expires_ms is None else _moment(stored.expires_ms * 1000)
        told = {"version": str(stored.version), "age_ms": age_ms, "deleted": stored.deleted, "expires_at": expires}
        return told | {"value": None if stored.deleted else _decoded(key, stored), "bytes": len(stored.body)}

    async def conflicts(self) -> dict[str, Any]:
        """The newest meetings of two writes."""
        found = await part(self._store.conflicts(limit=PAGE))
        return {"conflicts": [_conflict(one) for one in found["value"] or []], "error": found["error"]}

    async def tasks(self, status: str, cursor: str) -> dict[str, Any]:
        """How many in each state, and a page of them."""
        counts = await part(self._store.tasks.counts())
        found = await part(self._store.tasks.list(status=status or None, limit=PAGE, cursor=cursor or None))
        listed = [
            {"id": str(one.id), "type": one.type, "status": one.status, "priority": one.priority,
             "attempts": f"{one.attempts} of {one.attempts_max}", "worker": one.worker,
             "created_at": _when(one.created_at), "last_error": one.last_error}
            for one in (found["value"].items if found["value"] else [])
        ]  # fmt: skip
        more = found["value"].next if found["value"] else None
        error = found["error"]
        return {"counts": counts["value"] or {}, "status": status, "tasks": listed, "next": more, "error": error}

    async def knowledge(self, namespace: str, cursor: str) -> dict[str, Any]:
        """A page of facts."""
        namespace = namespace or "default"
        found = await part(self._store.knowledge.list(namespace=namespace, limit=PAGE, cursor=cursor or None))
        listed = [
            {"id": str(one.id), "text": _cut(one.text), "metadata": _shown("", one.metadata)}
            for one in (found["value"].items if found["value"] else [])
        ]
        more = found["value"].next if found["value"] else None
        return {"namespace": namespace, "facts": listed, "next": more, "error": found["error"]}

    async def messages(self, conversation: str, to: str) -> dict[str, Any]:
        """The newest messages: of a conversation, to somebody, or of all."""
        found = await part(
            self._store.messages.read(conversation=conversation or None, to=to or None, newest_first=True, limit=PAGE)
        )
        listed = [
            {"id": str(one.id), "at": _when(one.sent_at), "sender": one.sender, "to": one.to,
             "conversation": one.conversation, "body": _shown("", one.body)}
            for one in (found["value"].items if found["value"] else [])
        ]  # fmt: skip
        return {"conversation": conversation, "to": to, "messages": listed, "error": found["error"]}

    async def dead_letters(self) -> dict[str, Any]:
        """Writes that PostgreSQL refused."""
        found = await part(self._core.table.dead_letters(0, PAGE))
        listed = [
            {"id": one.id, "agent_id": str(one.agent_id), "key": keys.from_sql_key(one.key),
             "version": str(Version(one.epoch, one.version)), "bytes": len(one.raw), "reason": one.reason,
             "created_at": _moment(one.created_us)}
            for one in found["value"] or []
        ]  # fmt: skip
        return {"dead_letters": listed, "error": found["error"]}

    async def repairs(self) -> dict[str, Any]:
        """The newest comparisons of NATS with PostgreSQL."""
        found = await part(self._store.repairs(PAGE))
        listed = [
            {"id": str(one.id), "reason": one.reason, "dry_run": one.dry_run, "scanned": one.scanned,
             "found": one.found, "mended": one.mended, "left": one.left, "begun_at": _when(one.begun_at),
             "ended_at": _when(one.ended_at), "findings": [asdict(of) for of in one.findings[:10]]}
            for one in found["value"] or []
        ]  # fmt: skip
        return {"repairs": listed, "error": found["error"]}

    async def system(self) -> dict[str, Any]:
        """Servers, and each setting with where it came from."""
        shown, origins = configs.shown(self._store.config), configs.origins(self._store.config)
        settings = [{"name": name, "value": value, "origin": origins[name]} for name, value in shown.items()]
        return {"servers": self._store.servers or {}, "settings": settings}


def _decoded(key: str, stored: Stored) -> Any:
    if stored.codec == "b" or len(stored.body) > _BODY_MAX:
        return f"a value of {len(stored.body):,} bytes as it is kept"  # whoever looks must not hold up the flush
    try:
        return _shown(key, values.decode(stored.codec, stored.body))
    except CenoteError as error:
        return f"unreadable: {error}"


def _shown(key: str, value: Any) -> str:
    """A value as text, cut and without what its name says is a secret."""
    if _SECRET.search(key):
        return "•••"
    return _cut(_text(value))


def _text(value: Any, depth: int = 0) -> str:
    if isinstance(value, dict):
        if depth > limits.DASHBOARD_DEPTH:
            return "{…}"
        inner = (
            f"{_text(name)}: {'•••' if isinstance(name, str) and _SECRET.search(name) else _text(one, depth + 1)}"
            for name, one in list(value.items())[:200]
        )
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list):
        if depth > limits.DASHBOARD_DEPTH:
            return "[…]"
        return "[" + ", ".join(_text(one, depth + 1) for one in value[:200]) + "]"
    return repr(value[:_CHARS_MAX] if isinstance(value, str | bytes) else value)


def _cut(text: str) -> str:
    return text if len(text) <= _CHARS_MAX else text[:_CHARS_MAX] + " …"


def _moment(us: int | None) -> str | None:
    return None if us is None else from_us(us).isoformat(" ", "seconds").removesuffix("+00:00")


def _when(moment: Any) -> str | None:
    return None if moment is None else moment.isoformat(" ", "seconds").removesuffix("+00:00")


def _conflict(one: Conflict) -> dict[str, Any]:
    return {
        name: _cut(str(value)) if not isinstance(value, str | int | UUID | type(None)) else str(value)
        for name, value in asdict(one).items()
    }
