"""Repairs without `await`."""

from collections.abc import Callable, Iterable
from uuid import UUID

from cenote import store as stores
from cenote.blocking.thread import LoopThread
from cenote.engine import letters
from cenote.engine.letters import DeadLetter
from cenote.engine.repair_account import Repaired


class StoreRepair:
    """The part of `Store` that repairs."""

    _thread: LoopThread
    _store: stores.Store

    def repair(
        self,
        dry_run: bool = False,
        *,
        agents: Iterable[str | UUID] | None = None,
        entries_per_s: float | None = None,
        progress: Callable[[Repaired], object] | None = None,
    ) -> Repaired:
        """Compare NATS with PostgreSQL and mend what differs; see the other `repair`. `progress` is called in the
        store's own thread."""
        return self._thread.run(
            self._store.repair(dry_run, agents=agents, entries_per_s=entries_per_s, progress=progress)
        )

    def repairs(self, limit: int = 20) -> list[Repaired]:
        """The newest repairs; see the other `repairs`."""
        return self._thread.run(self._store.repairs(limit))

    @property
    def dead_letters(self) -> "DeadLetters":
        """Writes that PostgreSQL refused; see `cenote.Store.dead_letters`."""
        return DeadLetters(self._thread, self._store.dead_letters)


class DeadLetters:
    """See `cenote.Store.dead_letters`; threads may share it."""

    def __init__(self, thread: LoopThread, inner: letters.DeadLetters) -> None:
        self._thread = thread
        self._inner = inner

    def list(self, after: int = 0, limit: int = 100) -> list[DeadLetter]:
        """Those nobody has decided about; see the other `list`."""
        return self._thread.run(self._inner.list(after, limit))

    def retry(self, letter_id: int) -> bool:
        """Put a write into its row after all; see the other `retry`."""
        return self._thread.run(self._inner.retry(letter_id))

    def discard(self, letter_id: int) -> None:
        """Take a letter off the list; see the other `discard`."""
        self._thread.run(self._inner.discard(letter_id))
