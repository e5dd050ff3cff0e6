"""The part of a store that looks for differences between its tiers."""

from collections.abc import Callable, Iterable
from functools import cached_property
from uuid import UUID

from cenote.engine.letters import DeadLetters
from cenote.engine.machines import Machines
from cenote.engine.repair_account import Repaired
from cenote.errors import RejectedError
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
        entries_per_s: float | None = None,
        progress: Callable[[Repaired], object] | None = None,
    ) -> Repaired:
        """Compare what NATS holds with PostgreSQL, by version and content, and mend what differs: what was
        acknowledged and is missing or older in PostgreSQL goes there, what NATS shows too old is replaced. What is
        merely not flushed yet is no difference. A run of everything that was interrupted is gone on with.

        Args:
            dry_run: report only.
            agents: only these; None: all. Such a run begins anew when it was interrupted.
            entries_per_s: go no faster; None: as fast as it goes.
            progress: called after each page of 500 entries or fewer.

        Raises:
            UnavailableError: a server does not answer, or nobody flushes; what was mended stays mended.
            LifecycleError: this process was silent for so long that another one goes on with the run.
            RejectedError: entries_per_s is not above 0.
        """
        if entries_per_s is not None and not entries_per_s > 0:
            raise RejectedError(f"entries_per_s: a number above 0 is needed, not {entries_per_s!r}")
        wanted = None if agents is None else [agent_ref(one) for one in agents]
        return await self._machines.repair.run(
            dry_run=dry_run, agents=wanted, entries_per_s=entries_per_s, progress=progress
        )  # fmt: skip

    async def repairs(self, limit: int = 20) -> list[Repaired]:
        """The newest repairs, those that the flusher makes by itself included. UnavailableError."""
        return await self._machines.repair.newest(page_limit(limit))

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """Writes that PostgreSQL refused, and what becomes of them."""
        return DeadLetters(self._machines.core.table)
