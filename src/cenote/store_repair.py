"""The part of a store that looks for differences between its tiers."""

from collections.abc import Callable, Iterable
from uuid import UUID

from cenote.engine.machines import Machines
from cenote.engine.repair import Repaired
from cenote.model.key import agent_ref
from cenote.model.page import page_limit


class StoreRepair:
    """The part of `Store` that repairs."""

    _machines: Machines

    async def repair(
        self,
        dry_run: bool = False,
        *,
        agents: Iterable[str | UUID] | None = None,
        progress: Callable[[Repaired], object] | None = None,
    ) -> Repaired:
        """Compare what NATS holds with PostgreSQL, by version and content, and mend what differs: what was
        acknowledged and is missing or older in PostgreSQL goes there, what NATS shows too old is replaced. What is
        merely not flushed yet is no difference. A run of everything that was interrupted is gone on with.

        Args:
            dry_run: report only.
            agents: only these; None: all.
            progress: called after each page of 500 entries or fewer.

        Raises:
            UnavailableError: a server does not answer, or nobody flushes; what was mended stays mended.
        """
        wanted = None if agents is None else [agent_ref(one) for one in agents]
        return await self._machines.repair.run(dry_run=dry_run, agents=wanted, progress=progress)

    async def repairs(self, limit: int = 20) -> list[Repaired]:
        """The newest repairs, those that the flusher makes by itself included. UnavailableError."""
        return await self._machines.repair.newest(page_limit(limit))
