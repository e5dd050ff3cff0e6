"""Tasks, messages and facts as PostgreSQL holds them, read by plain asyncpg, and what is wrong with them.

A task is done in one transaction with what it says, so there are two states only: done and everything said, each
message and fact once, or not done and nothing said.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from cenote.demo.journal import Book, Place
from cenote.demo.telling import FACT, MESSAGE, fact_digest, message_digest
from cenote.demo.verify import Loss, value_of
from cenote.naming import Names

_TASKS = "SELECT payload->>'module' AS module, status, attempts FROM {schema}.queue WHERE task_id = ANY ($1)"
_MESSAGES = """
SELECT message_id::text AS id, sender, recipient AS to, body::text AS value, raw
  FROM {schema}.log WHERE conversation = $1 ORDER BY ts
"""
_FACTS = "SELECT fact_id::text AS id, text, metadata::text AS metadata FROM {schema}.facts WHERE namespace = $1"

Held = dict[Place, Counter[str]]  # by kind and id: how often it is there, by its fingerprint


class TaskSeen(NamedTuple):
    """A task of the queue."""

    module: str
    status: str
    attempts: int


class Rooms:
    """The schemas of tasks, messages and knowledge."""

    def __init__(self, dsn: str, names: Names) -> None:
        self._dsn = dsn
        self._names = names

    async def tasks(self, ids: Sequence[UUID]) -> list[TaskSeen]:
        """What became of them."""
        return [TaskSeen(*record) for record in await self._records("tasks", _TASKS, ids)]

    async def told(self, space: str) -> Held:
        """All messages of a conversation, and all facts of the namespace of the same name."""
        held: Held = {}
        for one in await self._records("messages", _MESSAGES, space):
            fingerprint = message_digest(sender=one["sender"], to=one["to"], body=value_of(one))
            held.setdefault((MESSAGE, one["id"]), Counter())[fingerprint] += 1
        for one in await self._records("knowledge", _FACTS, space):
            fingerprint = fact_digest(text=one["text"], metadata=json.loads(one["metadata"]))
            held.setdefault((FACT, one["id"]), Counter())[fingerprint] += 1
        return held

    async def _records(self, room: str, query: str, argument: Any) -> list["asyncpg.Record"]:
        connection = await asyncpg.connect(self._dsn)
        try:
            return list(await connection.fetch(query.format(schema=self._names.schema(room)), argument))
        finally:
            await connection.close()


def task_losses(tasks: Sequence[TaskSeen], wanted: Collection[str]) -> list[Loss]:
    """Every module must have one task, and that must be done."""
    found = [Loss(task.module, "task", f"is {task.status}") for task in tasks if task.status != "done"]
    times = Counter(task.module for task in tasks)
    found += [Loss(name, "task", f"there are {times[name]}") for name in sorted(wanted) if times[name] != 1]
    return found


def told_losses(book: Book, held: Held, done: Collection[str]) -> list[Loss]:
    """What belongs to a task that is done, or was acknowledged, must be there once; anything else must not be."""
    found, said = [], set[Place]()
    for module, parts in book.to_tell.items():
        wanted = module in done or module in book.told
        for place, fingerprint in parts.items():
            said.add(place)
            have = held.get(place, Counter())
            if have != (Counter([fingerprint]) if wanted else Counter()):
                times = f"{have.total()} times" if set(have) <= {fingerprint} else "with another content"
                found.append(Loss(module, " ".join(place), f"is there {times}"))
    found += [Loss("", " ".join(place), "was said by nobody") for place in sorted(held.keys() - said)]
    return found


def heard_losses(heard: Sequence[str], held: Held) -> list[Loss]:
    """A subscriber must have heard all messages, in the order of the log; hearing one again does no harm."""
    wanted = [name for kind, name in held if kind == MESSAGE]
    first = list(dict.fromkeys(heard))
    found = [Loss("", f"message {name}", "was not heard") for name in sorted(set(wanted) - set(first))]
    if not found and first != wanted:
        found.append(Loss("", "messages", "were heard in another order than they were sent"))
    return found
