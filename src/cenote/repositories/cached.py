"""Answers that are dear to make: made once, for every process, and kept for a while."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

from cenote import limits
from cenote.engine.machines import Machines
from cenote.engine.tiered import CacheCounts, Terms, Tiered
from cenote.errors import RejectedError
from cenote.model.duration import seconds
from cenote.model.entry import ttl_ms

T = TypeVar("T")

NOTHING: Final = timedelta(0)


class Answers:
    """What `store.cache` is: answers by key, in memory, in KV, and from whoever can make them."""

    def __init__(self, machines: Machines) -> None:
        self._tiers = Tiered(machines.core)
        self._ttl = timedelta(seconds=machines.core.config.cache.ttl_s)

    @property
    def counts(self) -> CacheCounts:
        """What became of this process's questions, by tier."""
        return self._tiers.counts

    async def get_or_load(
        self,
        key: str,
        loader: Callable[[], Awaitable[T]],
        *,
        ttl: timedelta | None = None,
        stale: timedelta | float = NOTHING,
        soft_timeout: timedelta | float | None = None,
        absent: timedelta | float = NOTHING,
    ) -> T:
        """The answer: as it is kept, or as `loader` makes it now; of all who ask at once, in all processes, one does.

        Args:
            key: 1 to 512 characters.
            loader: a coroutine function; its result is a value that an agent's key could hold.
            ttl: how long an answer is kept; None: `cache.ttl_s`. No copy outlives it.
            stale: when `loader` raises, but for NotFoundError, the old answer is given for so long after its time, if
                it was made with this argument, too.
            soft_timeout: when `loader` takes longer than this, too, and goes on for those who ask next.
            absent: when `loader` raises NotFoundError, that is kept for so long.

        Raises:
            RejectedError: an argument, or a result that cannot be kept.
            What `loader` raises. That KV is away, or full, never fails the call: then every process makes its own.
        """
        terms = Terms(
            ttl_ms(self._ttl if ttl is None else ttl) or 0,
            _ms(stale, "stale"),
            None if soft_timeout is None else _ms(soft_timeout, "soft_timeout"),
            _ms(absent, "absent"),
        )
        if not callable(loader):
            raise RejectedError("loader: a coroutine function is needed")
        found: T = await self._tiers.find(key, loader, terms)
        return found

    async def get(self, key: str, default: Any = None) -> Any:
        """The answer as it is kept; `default` when there is none, or its time is over.

        Raises:
            NotFoundError: it is kept that there is none.
            UnavailableError: KV cannot be asked.
        """
        found = await self._tiers.get(key)
        return default if found is None else found.value(key)

    async def put(self, key: str, value: object, *, ttl: timedelta | None = None) -> None:
        """Keep an answer that was made elsewhere. RejectedError, UnavailableError, BackpressureError: nobody will see
        it; OutcomeUnknownError: somebody may."""
        await self._tiers.put(key, value, ttl_ms(self._ttl if ttl is None else ttl) or 0)

    async def delete(self, key: str) -> None:
        """Forget an answer, in every process: within milliseconds; if the word is lost, within `memory.ttl_s`. Raises
        UnavailableError, OutcomeUnknownError."""
        await self._tiers.delete(key)

    def evict_expired(self) -> int:
        """Give back the memory of what is over; how many that were. KV does so by itself."""
        return self._tiers.evict_expired()


def _ms(duration: timedelta | float, name: str) -> int:
    given = seconds(duration, name) or 0
    if given > limits.TTL_S_MAX:
        raise RejectedError(f"{name}: {given} s is more than {limits.TTL_S_MAX // 86_400} days")
    return int(given * 1000)
