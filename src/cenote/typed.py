"""One key of one agent, bound to a class."""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from cenote.engine.receipt import Receipt
from cenote.model.entry import Entry, Version

if TYPE_CHECKING:
    from cenote.agent import AgentState

T = TypeVar("T")


class Typed(Generic[T]):
    """The verbs of `AgentState` for one key whose value is always a `T`."""

    def __init__(self, agent: "AgentState", key: str, cls: type[T]) -> None:
        self._agent = agent
        self._key = key
        self._cls = cls

    async def put(
        self,
        value: T,
        *,
        ttl: timedelta | None = None,
        if_version: Version | Receipt | Entry | int | None = None,
    ) -> Receipt:
        """See `AgentState.put`."""
        return await self._agent.put(self._key, value, ttl=ttl, if_version=if_version)

    async def get(self, default: T | None = None) -> T | None:
        """See `AgentState.get`."""
        return cast("T | None", await self._agent.get(self._key, default, into=self._cls))

    async def entry(self) -> Entry:
        """See `AgentState.entry`."""
        return await self._agent.entry(self._key, into=self._cls)

    async def update(
        self, change: Callable[[T], T], *, default: Any = ..., deadline: timedelta | float | None = None
    ) -> Entry:
        """See `AgentState.update`; without `default` an absent key raises NotFoundError."""
        if default is ...:
            return await self._agent.update(self._key, change, into=self._cls, deadline=deadline)
        return await self._agent.update(self._key, change, default=default, into=self._cls, deadline=deadline)

    async def delete(self, *, if_version: Version | Receipt | Entry | int | None = None) -> Receipt:
        """See `AgentState.delete`."""
        return await self._agent.delete(self._key, if_version=if_version)
