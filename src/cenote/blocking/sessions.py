"""Sessions without `await`."""

from datetime import timedelta

from cenote.blocking.thread import LoopThread
from cenote.model.page import Page
from cenote.repositories import sessions
from cenote.repositories.sessions import Session


class Sessions:
    """See `cenote.Store.sessions`; threads may share it."""

    def __init__(self, thread: LoopThread, inner: sessions.Sessions) -> None:
        self._thread = thread
        self._inner = inner

    def create(self, data: object = None, *, session_id: str | None = None, ttl: timedelta | None = None) -> Session:
        """Begin a session; see the other `create`."""
        return self._thread.run(self._inner.create(data, session_id=session_id, ttl=ttl))

    def save(self, entity: Session, /) -> Session:
        """Create or replace; see the other `save`."""
        return self._thread.run(self._inner.save(entity))

    def find(self, entity_id: str, /) -> Session:
        """The session; see the other `find`."""
        return self._thread.run(self._inner.find(entity_id))

    def update(self, entity: Session, /) -> Session:
        """Replace what was read; see the other `update`."""
        return self._thread.run(self._inner.update(entity))

    def touch(self, session_id: str, *, ttl: timedelta | None = None) -> Session:
        """Let it live for its whole ttl again; see the other `touch`."""
        return self._thread.run(self._inner.touch(session_id, ttl=ttl))

    def delete(self, entity_id: str, /) -> None:
        """End it; see the other `delete`."""
        self._thread.run(self._inner.delete(entity_id))

    def list(self, *, limit: int = 100, cursor: str | None = None) -> Page[Session]:
        """Live sessions; see the other `list`."""
        return self._thread.run(self._inner.list(limit=limit, cursor=cursor))
