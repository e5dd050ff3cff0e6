"""The word to idle workers that there is something to do: one small message over NATS for each type of a commit, at
most once. Who was not told looks by himself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

from cenote.engine.core import Core
from cenote.errors import CenoteError
from cenote.kv.lane import Handler
from cenote.sql.transaction import Transaction


class Bell:
    """Rings for the workers of a store; types are SQL-escaped."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def ring(self, types: set[str], tx: Transaction | None) -> None:
        """Tell that tasks of these types are due; with a transaction: once it is committed."""
        if tx is not None:
            tx.after_commit.append(lambda: self.ring(types, None))
            return
        for one in types:
            try:
                self._core.link.send(self._subject(one), b"", b"")
            except CenoteError:
                return

    @contextmanager
    def heard(self, types: Sequence[str], handler: Handler) -> Iterator[None]:
        """Call the handler whenever it rings for one of these."""
        ears = [self._core.link.subscribe(self._subject(one), handler) for one in types]
        try:
            yield
        finally:
            for ear in ears:
                ear.close()

    def _subject(self, task_type: str) -> str:
        return f"taskw.{self._core.names.prefix}tasks.{blake2b(task_type.encode(), digest_size=9).hexdigest()}"
