"""What the pages about the store say, as plain documents: a page and its JSON are the same document."""

import asyncio
from dataclasses import asdict
from typing import Any, Final

from cenote import config as configs
from cenote.dashboard.parts import LOOK_S, NATS, POSTGRESQL, part
from cenote.dashboard.showing import cut, secret, shown, when
from cenote.engine.conflict_log import Conflict
from cenote.store import Store

PAGE: Final = 50


class Pages:
    """The documents of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def overview(self) -> dict[str, Any]:
        """Lag against the window, what waits, health, and who lags most."""
        store = self._store
        stats, health, lagging = await asyncio.gather(
            part(store.stats(), NATS, LOOK_S), part(store.health(), "health", LOOK_S),
            part(store.lagging(8), NATS, LOOK_S),
        )  # fmt: skip
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

    async def conflicts(self) -> dict[str, Any]:
        """The newest meetings of two writes."""
        found = await part(self._store.conflicts(limit=PAGE), f"{NATS} and {POSTGRESQL}")
        return {"conflicts": [_conflict(one) for one in found["value"] or []], "error": found["error"]}

    async def dead_letters(self, after: str) -> dict[str, Any]:
        """Writes that PostgreSQL refused."""
        last = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else 0
        found = await part(self._store.dead_letters.list(last, PAGE + 1), POSTGRESQL)
        rows = found["value"] or []
        listed = [
            {"id": one.id, "agent": one.agent, "key": one.key, "version": str(one.version), "bytes": one.size,
             "reason": cut(one.reason), "created_at": when(one.created_at)}
            for one in rows[:PAGE]
        ]  # fmt: skip
        more = listed[-1]["id"] if len(rows) > PAGE else None
        return {"dead_letters": listed, "next": more, "error": found["error"]}

    async def repairs(self) -> dict[str, Any]:
        """The newest comparisons of NATS with PostgreSQL."""
        found = await part(self._store.repairs(PAGE), POSTGRESQL)
        listed = [
            {"id": str(one.id), "reason": one.reason, "dry_run": one.dry_run, "scanned": one.scanned,
             "found": one.found, "mended": one.mended, "left": one.left, "begun_at": when(one.begun_at),
             "ended_at": when(one.ended_at), "findings": [asdict(of) for of in one.findings[:10]]}
            for one in found["value"] or []
        ]  # fmt: skip
        return {"repairs": listed, "error": found["error"]}

    async def system(self) -> dict[str, Any]:
        """Servers, and each setting with where it came from."""
        told, origins = configs.shown(self._store.config), configs.origins(self._store.config)
        settings = [{"name": name, "value": value, "origin": origins[name]} for name, value in told.items()]
        return {"servers": self._store.servers or {}, "settings": settings}


def _conflict(one: Conflict) -> dict[str, Any]:
    told = {name: value if value is None else str(value) for name, value in asdict(one).items()}
    for name in ("current", "incoming", "result"):
        told[name] = shown(one.key, getattr(one, name))
    if secret(one.key):
        told["reason"] = None
    return told | {"at": when(one.at)}
