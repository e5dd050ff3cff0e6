"""Messages without `await`."""

from collections.abc import Iterable, Mapping
from uuid import UUID

from cenote.blocking.iteration import Iteration
from cenote.blocking.thread import LoopThread
from cenote.blocking.transactions import Transaction, bare
from cenote.model.page import Page
from cenote.repositories import messages
from cenote.repositories.messages import Who
from cenote.repositories.messages_entity import Message, NewMessage


class Messages:
    """See `cenote.Store.messages`; threads may share it."""

    def __init__(self, thread: LoopThread, inner: messages.Messages) -> None:
        self._thread = thread
        self._inner = inner

    def send(
        self,
        body: object,
        *,
        sender: Who,
        to: Who,
        conversation: Who | None = None,
        message_id: UUID | None = None,
        reply_to: UUID | None = None,
        metadata: Mapping[str, object] | None = None,
        tx: Transaction | None = None,
    ) -> Message:
        """Say something; see the other `send`."""
        work = self._inner.send(
            body, sender=sender, to=to, conversation=conversation, message_id=message_id, reply_to=reply_to,
            metadata=metadata, tx=bare(tx),
        )  # fmt: skip
        return self._thread.run(work)

    def send_many(self, messages: Iterable[NewMessage], *, tx: Transaction | None = None) -> list[Message]:
        """Say several things at once, all or none; see the other `send_many`."""
        return self._thread.run(self._inner.send_many(messages, tx=bare(tx)))

    def read(
        self,
        *,
        conversation: Who | None = None,
        to: Who | None = None,
        sender: Who | None = None,
        limit: int = 100,
        cursor: str | None = None,
        newest_first: bool = False,
    ) -> Page[Message]:
        """A page of what was said; see the other `read`."""
        work = self._inner.read(
            conversation=conversation, to=to, sender=sender, limit=limit, cursor=cursor, newest_first=newest_first
        )
        return self._thread.run(work)

    def get(self, message_id: UUID) -> Message:
        """One message; see the other `get`."""
        return self._thread.run(self._inner.get(message_id))

    def search(
        self,
        text: str,
        *,
        conversation: Who | None = None,
        to: Who | None = None,
        sender: Who | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page[Message]:
        """Messages with these words; see the other `search`."""
        work = self._inner.search(text, conversation=conversation, to=to, sender=sender, limit=limit, cursor=cursor)
        return self._thread.run(work)

    def subscribe(
        self,
        *,
        conversation: Who | None = None,
        to: Who | None = None,
        sender: Who | None = None,
        since: str | int | None = None,
    ) -> Iteration[Message]:
        """Messages as they are sent; see the other `subscribe`."""
        source = self._inner.subscribe(conversation=conversation, to=to, sender=sender, since=since)
        return Iteration(self._thread, source, page=1)

    def delete(self, message_id: UUID) -> None:
        """Remove a message; see the other `delete`."""
        self._thread.run(self._inner.delete(message_id))

    def forget(self, conversation: Who) -> int:
        """Remove what was said in a conversation; see the other `forget`."""
        return self._thread.run(self._inner.forget(conversation))
