"""One interface for every kind of data: `store.data(category)` follows the category's route (specification 1.1, 1.2).

Each kind has richer verbs of its own; these four are what all of them have in common. A key is any text. Where the kind
names its things by UUIDs, a key that is a canonical UUID is the id itself, and any other has one that is made of it:
so what `store.tasks.add` has added is found here, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import Any, Final, Protocol
from uuid import UUID

from cenote import limits
from cenote.agent import AgentState
from cenote.errors import NotFoundError, RejectedError
from cenote.repositories.agents import Agents
from cenote.repositories.knowledge import Knowledge, Mode
from cenote.repositories.knowledge_entity import Fact
from cenote.repositories.messages import Messages
from cenote.repositories.sessions import Session, Sessions
from cenote.repositories.tasks import Tasks
from cenote.routing import Route

_KEY: Final = "key"
"""Where the metadata of tasks, messages and facts keep the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a search found.

    Attributes:
        key: give it to `retrieve`.
        value: what was stored.
        score: of knowledge: higher is better; None: everything that was found fits alike.
    """

    key: str
    value: Any
    score: float | None = None


class DataStorage(Protocol):
    """The four verbs that every kind of data has."""

    async def store(self, key: str, value: object) -> None:
        """Keep a value under a key, as safely as the category's route says. Raises RejectedError, UnavailableError, and
        what else the kind's own verb raises."""
        ...

    async def retrieve(self, key: str) -> Any:
        """The value. NotFoundError when there is none."""
        ...

    async def remove(self, key: str) -> None:
        """Remove it; removing an absent one is fine."""
        ...

    async def search(self, query: Any, *, limit: int = 10) -> list[Match]:
        """What fits: a filter of the value for state and tasks, words for messages, words or a question for knowledge.
        RejectedError where nothing can be searched, as in sessions."""
        ...


def identity(category: str, key: str) -> UUID:
    """The id behind a key: itself where it is a UUID's canonical text; else a UUIDv8 (RFC 9562) made of both texts."""
    if not isinstance(key, str) or not 0 < len(key) <= limits.KEY_CHARS_MAX:
        raise RejectedError(f"key: 1 to {limits.KEY_CHARS_MAX} characters are needed")
    try:
        given = UUID(key)
    except ValueError:
        given = None
    if given is not None and str(given) == key:
        return given
    both = f"{len(category)}:{category}{key}".encode("utf-8", "surrogatepass")
    bits = int.from_bytes(blake2b(both, digest_size=16, person=b"cenote data key").digest(), "big")
    return UUID(int=bits & ~(0xF << 76) & ~(0x3 << 62) | 8 << 76 | 0x2 << 62)


def _key(category: str, metadata: Mapping[str, Any], own: UUID) -> str:
    """The key that a thing was stored under; its id where it was made by its kind's own verbs."""
    said = metadata.get(_KEY)
    return said if isinstance(said, str) and identity(category, said) == own else str(own)


def _absent(key: str) -> NotFoundError:
    return NotFoundError(f"{key!r} does not exist", key=key)


class StateData:
    """Working state: the keys of one agent, which flow to PostgreSQL."""

    def __init__(self, agent: AgentState, agents: Agents, route: Route) -> None:
        self._agent = agent
        self._agents = agents
        self._route = route

    async def store(self, key: str, value: object) -> None:
        """Put it, or let it meet what is there where the route has a resolver. Raises as `AgentState.put`, `merge`."""
        route = self._route
        ttl = None if route.ttl_s is None else timedelta(seconds=route.ttl_s)
        if route.resolver is None:
            await self._agent.put(key, value, ttl=ttl, durability=route.durability)
            return
        await self._agent.merge(key, value, strategy=route.resolver, ttl=ttl)
        if route.durability == "sql":
            await self._agent.flush()

    async def retrieve(self, key: str) -> Any:
        """The value. Raises NotFoundError, and as `AgentState.get`."""
        return (await self._agent.entry(key)).value

    async def remove(self, key: str) -> None:
        """Delete it."""
        receipt = await self._agent.delete(key)
        if self._route.durability == "sql":
            await receipt.durable()

    async def search(self, query: Any, *, limit: int = 10) -> list[Match]:
        """Keys whose value fits a filter (`{"step": {"gt": 3}}`), as PostgreSQL has them."""
        page = await self._agents.search_state(query, agent=self._agent.name, limit=limit)
        return [Match(key=hit.key, value=hit.value) for hit in page.items]


class SessionData:
    """Sessions, and all that dies of age in KV: a value lives for the route's `ttl_s`, or else for `session.ttl_s`."""

    def __init__(self, sessions: Sessions, route: Route) -> None:
        self._sessions = sessions
        self._ttl = None if route.ttl_s is None else timedelta(seconds=route.ttl_s)

    async def store(self, key: str, value: object) -> None:
        """Save it; it lives from now on."""
        await self._sessions.save(Session(id=key, data=value, ttl=self._ttl))

    async def retrieve(self, key: str) -> Any:
        """The value. ExpiredError, which is a NotFoundError, when it is over."""
        return (await self._sessions.find(key)).data

    async def remove(self, key: str) -> None:
        """Delete it."""
        await self._sessions.delete(key)

    async def search(self, query: Any, *, limit: int = 10) -> list[Match]:
        """RejectedError: KV finds by key alone."""
        raise RejectedError("sessions cannot be searched: KV finds by key alone", hint="use sessions.list()")


class TaskData:
    """Tasks: a value is the payload of a task of the category's name; it never changes, and removing it cancels it."""

    def __init__(self, tasks: Tasks, category: str) -> None:
        self._tasks = tasks
        self._category = category

    async def store(self, key: str, value: object) -> None:
        """Add the task. AlreadyExistsError when the key has another value."""
        task_id = identity(self._category, key)
        await self._tasks.add(self._category, value, task_id=task_id, metadata={_KEY: key})

    async def retrieve(self, key: str) -> Any:
        """The payload. NotFoundError when there is no such task, or it was cancelled."""
        task = await self._tasks.get(identity(self._category, key))
        if task.status == "cancelled":
            raise _absent(key)
        return task.payload

    async def remove(self, key: str) -> None:
        """Cancel it. ConflictError when it is finished: what was done stays on record."""
        try:
            await self._tasks.cancel(identity(self._category, key))
        except NotFoundError:
            return

    async def search(self, query: Any, *, limit: int = 10) -> list[Match]:
        """Tasks of all types whose payload fits a filter (`{"depth_m": {"gt": 30}}`)."""
        found: list[Match] = []
        cursor: str | None = None
        while len(found) < limit:
            page = await self._tasks.list(where=query, limit=limit, cursor=cursor)
            found += [
                Match(key=_key(self._category, one.metadata, one.id), value=one.payload)
                for one in page.items if one.status != "cancelled"
            ]  # fmt: skip
            cursor = page.next
            if cursor is None:
                break
        return found[:limit]


class MessageData:
    """Messages: a value is the body of a message of the category to itself; it never changes."""

    def __init__(self, messages: Messages, category: str) -> None:
        self._messages = messages
        self._category = category

    async def store(self, key: str, value: object) -> None:
        """Send it. AlreadyExistsError when the key has another value."""
        message_id = identity(self._category, key)
        await self._messages.send(
            value, sender=self._category, to=self._category, message_id=message_id, metadata={_KEY: key}
        )

    async def retrieve(self, key: str) -> Any:
        """The body. NotFoundError when there is no such message."""
        return (await self._messages.get(identity(self._category, key))).body

    async def remove(self, key: str) -> None:
        """Delete it."""
        await self._messages.delete(identity(self._category, key))

    async def search(self, query: Any, *, limit: int = 10) -> list[Match]:
        """Messages with these words, by whomever, the newest first."""
        page = await self._messages.search(query, limit=limit)
        return [Match(key=_key(self._category, one.metadata, one.id), value=one.body) for one in page.items]


class KnowledgeData:
    """Knowledge: a value is the text of a fact; storing another one under the key replaces it."""

    def __init__(self, knowledge: Knowledge, category: str, mode: Mode) -> None:
        self._knowledge = knowledge
        self._category = category
        self._mode = mode

    async def store(self, key: str, value: object) -> None:
        """Save the fact. RejectedError unless it is a text: what else is to be said of a fact is metadata, which
        `store.knowledge.add` takes."""
        if not isinstance(value, str):
            raise RejectedError(
                f"value: a fact is a text, not {type(value).__name__}", key=key,
                hint="store.knowledge.add takes metadata beside the text",
            )  # fmt: skip
        await self._knowledge.save(Fact(id=identity(self._category, key), text=value, metadata={_KEY: key}))

    async def retrieve(self, key: str) -> Any:
        """The text. NotFoundError when there is no such fact."""
        return (await self._knowledge.find(identity(self._category, key))).text

    async def remove(self, key: str) -> None:
        """Delete it."""
        await self._knowledge.delete(identity(self._category, key))

    async def search(self, query: Any, *, limit: int = 10) -> list[Match]:
        """Facts by meaning and by words, the best first; by words alone where the route has no VECTOR_STORE."""
        found = await self._knowledge.search(query, limit=limit, mode=self._mode)
        return [
            Match(key=_key(self._category, one.fact.metadata, one.fact.id), value=one.fact.text, score=one.score)
            for one in found
        ]
