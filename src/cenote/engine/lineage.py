"""Which PostgreSQL a shift writes to, and whether it has gone back in time (I1, I11; flow rule 5).

An entry that was flushed is acknowledged, and nobody would flush it again: if the database then loses that commit, to a
failover or a restored data directory, the entry is lost at its eviction although both copies existed. So the name of a
durable ends in a mark of the server that it flushes into, its start included. A server with another mark gets a new
durable, which delivers everything that KV holds, clean copies too; and no entry is evicted, and no `flush()` returns,
on the word of a durable of another mark. A dump that is restored into a running server shows in the number of
commits, which then goes back.
"""

import asyncio
import logging
import secrets
from hashlib import blake2b

from cenote import limits
from cenote.engine.core import Core
from cenote.engine.lease import Board
from cenote.errors import CenoteError, ConsistencyError
from cenote.sql.changes import BEFORE_ALL, CommitId
from cenote.sql.pool import SqlIdentity

log = logging.getLogger("cenote.engine")


def mark(identity: SqlIdentity) -> str:
    """What a durable's name says of the PostgreSQL behind it."""
    return blake2b(str(identity).encode(), digest_size=5).hexdigest()


def flushes_into(durable: str, identity: SqlIdentity) -> bool:
    """Whether what this durable has settled was committed by this very server."""
    return mark(identity) in durable.split("_")


class Lineage:
    """The database of one shift."""

    def __init__(self, core: Core, board: Board) -> None:
        self._core = core
        self._board = board
        self._identity: SqlIdentity | None = None
        self._head = BEFORE_ALL
        self._looking = (
            asyncio.Lock()
        )  # of two answers the older one may come last, and look as if PostgreSQL went back

    async def durable(self, prefix: str, known: str | None) -> str:
        """The name of the durable that a shift must use: the `known` one, unless PostgreSQL may have lost commits since
        that began. What it lost for certain is told and counted. Raises UnavailableError, also for a standby."""
        board, table = self._board, self._core.table
        self._identity = await self._core.db.identity()
        self._head = await table.head()
        name = f"{prefix}_{mark(self._identity)}"
        back = self._went_back(CommitId(board.sql_commits, board.sql_committed_us))
        if back:
            lost = max(1, board.sql_commits - self._head.number)
            board.sql_commits_lost += lost
            log.warning(
                "PostgreSQL has gone back in time and lost %d or more commits; all that KV holds is flushed again, what"
                " had left KV since then may be lost", lost,
            )  # fmt: skip
            name = f"{name}_{secrets.token_hex(3)}"  # the mark may be the same: nothing was restarted
        elif known is not None and (known == name or known.startswith(f"{name}_")):
            name = known
        elif known is not None and known.startswith(prefix):
            log.info("another start of PostgreSQL: all that KV holds passes the fence once more")
        self._remember()
        return name

    async def demand(self) -> None:
        """PostgreSQL has not changed since the shift, or whoever asks here first, began.

        Raises:
            ConsistencyError: it may have lost what the durable has settled.
            UnavailableError: it cannot be asked, or is a standby.
        """
        async with self._looking:
            identity, head = await self._core.db.identity(), await self._core.table.head()
            if self._identity is None:
                self._identity, self._head = identity, head
            if identity != self._identity:
                raise ConsistencyError(f"I11: PostgreSQL is another one: {self._identity} became {identity}")
            if self._went_back(self._head, head):
                raise ConsistencyError(
                    f"I11: PostgreSQL has gone back from commit {self._head.number} to {head.number}"
                )
            self._head = max(self._head, head)

    async def follow(self, durable: str) -> None:
        """Begin to flush what a durable delivers that another process has named.

        Raises:
            ConsistencyError: it was named for another PostgreSQL, or another start of it, than answers here.
            UnavailableError: as `demand`.
        """
        await self.demand()
        if self._identity is None or not flushes_into(durable, self._identity):
            raise ConsistencyError(f"I11: durable {durable} is not for the PostgreSQL that answers: {self._identity}")

    async def keep(self, *, pruning: bool = True) -> None:
        """Look again and again; ends, with ConsistencyError, when PostgreSQL is another one. Keep the log bounded, in
        one process of those that flush."""
        looks = 0
        while True:
            await asyncio.sleep(limits.LEASE_RENEW_MS / 1000)
            try:
                await self.demand()
                self._remember()
                looks += 1
                if pruning and looks % limits.PRUNE_LOOKS == 0:
                    age_s = self._core.config.flush.changes_s
                    await self._core.table.prune(age_s, limits.PRUNE_COMMITS_MAX)
            except ConsistencyError:
                raise
            except CenoteError as error:
                log.debug("cannot ask PostgreSQL who it is: %s", error)  # flushes wait for it as well

    def _went_back(self, before: CommitId, now: CommitId | None = None) -> bool:
        """Whether a commit that was there is gone; the same number at another time is another commit."""
        now = now or self._head
        return now.number < before.number or (now.number == before.number and now != before)

    def _remember(self) -> None:
        self._board.sql_commits, self._board.sql_committed_us = self._head
