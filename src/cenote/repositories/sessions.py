"""Sessions: what somebody does now, until he has been idle for too long. They live in KV alone."""

import builtins
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from cenote import limits
from cenote.engine.expiring import Expiring, Kept
from cenote.engine.machines import Machines
from cenote.errors import AlreadyExistsError, ConflictError, ExpiredError, NotFoundError, RejectedError
from cenote.kv.errors import WrongSequence
from cenote.model import key as keys
from cenote.model import value as values
from cenote.model.entry import from_ms, from_us, ttl_ms
from cenote.model.page import Cursors, Page, page_limit
from cenote.naming import SESSION_DATA
from cenote.repositories.repository import Repository
from cenote.retry import Backoff

_EXPIRED_MS: Final = 360_000  # so long, at least 5 minutes, "it has expired" is told from "there is none"
_TIER: Final = "DISTRIBUTED_KV"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody's session.

    Attributes:
        id: what names it; one that nobody can guess, unless you gave your own.
        data: the value that was given.
        ttl: how long it lives after it was saved, updated or touched last; None: `session.ttl_s`.
        expires_at: when it is over, by the KV server's clock, UTC; None: it was not read from the store.
        written_at: when it was saved, updated or touched last; None as above.
        version: of that write; `update` compares it.
    """

    id: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    data: Any = None
    ttl: timedelta | None = None
    expires_at: datetime | None = None
    written_at: datetime | None = None
    version: str = ""


class Sessions(Repository[Session, str]):
    """Sessions by their ids. An acknowledged write is seen by everybody at once; nothing is kept in memory."""

    def __init__(self, machines: Machines, within: str = "") -> None:
        """within: the category of those that are apart from all others."""
        self._core = machines.core
        self._bucket = Expiring(machines.core, SESSION_DATA, discard="new")
        self._mark = f"=of.{keys.encode_key(within)}." if within else ""

    async def create(
        self, data: object = None, *, session_id: str | None = None, ttl: timedelta | None = None
    ) -> Session:
        """Begin a session.

        Args:
            data: any value that an agent's key could hold, up to 512 KiB encoded.
            session_id: 1 to 512 characters; None: one that nobody can guess.
            ttl: how long it lives unless it is touched; None: `session.ttl_s`.

        Raises:
            RejectedError: an argument, with its limit; nothing was written.
            AlreadyExistsError: there is a session of this id.
            UnavailableError, BackpressureError: nothing was written, try again later.
            OutcomeUnknownError: the answer was lost; find it before you create it again.
        """
        wanted = Session(data=data, ttl=ttl) if session_id is None else Session(id=session_id, data=data, ttl=ttl)
        subject, backoff = self._subject(wanted.id), self._backoff()
        while True:
            held = await self._bucket.read(subject)
            if held is not None and self._live(held):
                raise AlreadyExistsError(f"session {wanted.id!r} exists", key=wanted.id, tier=_TIER)
            try:
                return await self._write(subject, wanted, 0 if held is None else held.sequence, backoff)
            except WrongSequence as error:
                await backoff.pause(_contended(wanted.id, error))

    async def save(self, entity: Session, /) -> Session:
        """Create or replace, whoever has changed it meanwhile. Raises as `create`, but for AlreadyExistsError."""
        return await self._write(self._subject(entity.id), entity, None, self._backoff())

    async def find(self, entity_id: str, /) -> Session:
        """The session.

        Raises:
            ExpiredError: it was over within the last 5 minutes, or a little longer.
            NotFoundError: there is none, or it was deleted.
            UnavailableError: KV cannot be reached.
        """
        return _session(entity_id, await self._held(entity_id))

    async def update(self, entity: Session, /) -> Session:
        """Replace what was read; it lives for its whole ttl again.

        Raises:
            ConflictError: somebody has changed it since: find it, and decide again.
            ExpiredError, NotFoundError: as `find`.
        """
        held = await self._held(entity.id)
        if held.op != entity.version:
            raise _changed(entity.id)
        try:
            return await self._write(self._subject(entity.id), entity, held.sequence, self._backoff())
        except WrongSequence as error:
            raise _changed(entity.id) from error

    async def touch(self, session_id: str, *, ttl: timedelta | None = None) -> Session:
        """Let it live for its whole ttl again, or from now on for another one. Raises as `find`."""
        subject, backoff = self._subject(session_id), self._backoff()
        while True:
            held = await self._held(session_id)
            found = _session(session_id, held)
            wanted = found if ttl is None else replace(found, ttl=ttl)
            try:
                return await self._write(subject, wanted, held.sequence, backoff)
            except WrongSequence as error:
                await backoff.pause(_contended(session_id, error))

    async def delete(self, entity_id: str, /) -> None:
        """End it; ending one that is over is fine. Raises UnavailableError, OutcomeUnknownError."""
        await self._bucket.delete(self._subject(entity_id), over=None, backoff=self._backoff())

    async def list(self, *, limit: int = 100, cursor: str | None = None) -> Page[Session]:
        """Live sessions in the order of their last change; one that changes while you turn the pages comes again.

        Raises:
            NotFoundError: there is no such page.
            UnavailableError: KV cannot be reached.
        """
        cursors = Cursors(self._core.epochs.store_id, "sessions")
        after = 0 if cursor is None else cursors.read(cursor)[0]
        found, more = await self._bucket.page(after, page_limit(limit), self._mark)
        items: builtins.list[Session] = [_session(key, kept) for key, kept in found]
        return Page(items, cursors.write(found[-1][1].sequence) if more else None)

    # --- within ---------------------------------------------------------------------------------------------

    async def _held(self, session_id: str) -> Kept:
        held = await self._bucket.read(self._subject(session_id))
        if held is None or held.gone:
            raise NotFoundError(f"there is no session {session_id!r}", key=session_id, tier=_TIER)
        if not self._live(held):
            raise ExpiredError(
                f"session {session_id!r} expired at {from_ms(held.expires_ms):%H:%M:%S} UTC",
                key=session_id, tier=_TIER, hint="begin a new one: its data is gone",
            )  # fmt: skip
        return held

    def _subject(self, session_id: str) -> str:
        return self._bucket.subject(session_id, self._mark)

    def _live(self, held: Kept) -> bool:
        return not held.gone and held.expires_ms > self._core.now_ms()

    async def _write(self, subject: str, wanted: Session, over: int | None, backoff: Backoff) -> Session:
        ttl = timedelta(seconds=self._core.config.session.ttl_s) if wanted.ttl is None else wanted.ttl
        life_ms = ttl_ms(ttl) or 0
        codec, body = values.encode({"data": wanted.data, "ttl_ms": None if wanted.ttl is None else life_ms})
        if len(body) > limits.INLINE_BYTES_MAX:
            raise RejectedError(
                f"data: {len(body)} bytes encoded; a session may have {limits.INLINE_BYTES_MAX}", key=wanted.id,
                hint="keep what is large under an agent's key, and its name in the session",
            )  # fmt: skip
        expires_ms = self._core.now_ms() + life_ms
        kept = await self._bucket.write(
            subject, codec, body, expires_ms=expires_ms, keep_ms=_EXPIRED_MS, over=over, backoff=backoff
        )
        return _session(wanted.id, kept)

    def _backoff(self) -> Backoff:
        return Backoff(self._core.config.retry, self._core.config.retry.deadline_ms)


def _session(session_id: str, kept: Kept) -> Session:
    told = values.decode(kept.codec, kept.body)
    ttl = None if told["ttl_ms"] is None else timedelta(milliseconds=told["ttl_ms"])
    return Session(
        id=session_id, data=told["data"], ttl=ttl, expires_at=from_ms(kept.expires_ms),
        written_at=from_us(kept.written_us), version=kept.op,
    )  # fmt: skip


def _changed(session_id: str) -> ConflictError:
    return ConflictError(
        f"session {session_id!r} was changed since it was read", key=session_id, tier=_TIER,
        hint="find it and decide again",
    )  # fmt: skip


def _contended(session_id: str, error: WrongSequence) -> ConflictError:
    found = ConflictError(f"session {session_id!r}: others were faster until the deadline", key=session_id, tier=_TIER)
    found.__cause__ = error
    return found
