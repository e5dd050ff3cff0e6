"""What the pages about tasks, messages and knowledge say, as plain documents."""

import asyncio
from typing import Any

from cenote.dashboard.pages import PAGE
from cenote.dashboard.parts import POSTGRESQL, first, part
from cenote.dashboard.showing import cut, shown, when
from cenote.store import Store


class Records:
    """The documents of what PostgreSQL holds alone."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def tasks(self, status: str, cursor: str) -> dict[str, Any]:
        """How many in each state, and a page of them."""
        tasks = self._store.tasks
        counts, found = await asyncio.gather(
            part(tasks.counts(), POSTGRESQL),
            part(tasks.list(status=status or None, limit=PAGE, cursor=cursor or None), POSTGRESQL),
        )
        listed = [
            {"id": str(one.id), "type": one.type, "status": one.status, "priority": one.priority,
             "attempts": f"{one.attempts} of {one.attempts_max}", "worker": one.worker,
             "created_at": when(one.created_at), "payload": shown("", one.payload),
             "last_error": None if one.last_error is None else cut(one.last_error)}
            for one in (found["value"].items if found["value"] else [])
        ]  # fmt: skip
        more = found["value"].next if found["value"] else None
        error = first(counts["error"], found["error"])
        return {"counts": counts["value"] or {}, "status": status, "tasks": listed, "next": more, "error": error}

    async def knowledge(self, namespace: str, query: str, cursor: str) -> dict[str, Any]:
        """A page of facts, or those that a search finds, the best first."""
        namespace, knowledge = namespace or "default", self._store.knowledge
        if query:
            best = await part(knowledge.search(query, namespace=namespace, limit=PAGE), POSTGRESQL)
            facts = [(one.fact, round(one.score, 4)) for one in best["value"] or []]
            more, error = None, best["error"]
        else:
            found = await part(
                knowledge.list(namespace=namespace, limit=PAGE, cursor=cursor or None), POSTGRESQL
            )  # fmt: skip
            facts = [(one, None) for one in (found["value"].items if found["value"] else [])]
            more, error = found["value"].next if found["value"] else None, found["error"]
        listed = [
            {"id": str(one.id), "text": cut(one.text), "metadata": shown("", one.metadata), "score": score}
            for one, score in facts
        ]
        return {"namespace": namespace, "query": query, "facts": listed, "next": more, "error": error}

    async def messages(self, conversation: str, to: str, before: str, after: str) -> dict[str, Any]:
        """The newest messages, or those before or after one: of a conversation, to somebody, or of all. The newest come
        first on every page."""
        found = await part(
            self._store.messages.read(
                conversation=conversation or None, to=to or None, newest_first=not after, limit=PAGE,
                cursor=after or before or None,
            ),
            POSTGRESQL,
        )  # fmt: skip
        items = list(found["value"].items) if found["value"] else []
        more = found["value"] is not None and found["value"].next is not None
        if after:
            items.reverse()
        listed = [
            {"id": str(one.id), "at": when(one.sent_at), "sender": one.sender, "to": one.to,
             "conversation": one.conversation, "body": shown("", one.body)}
            for one in items
        ]  # fmt: skip
        return {
            "conversation": conversation, "to": to, "messages": listed, "error": found["error"],
            "older": items[-1].position if items and (more or after) else None,
            "newer": items[0].position if items and (more if after else before) else None,
        }  # fmt: skip
