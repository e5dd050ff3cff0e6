"""One agent's past: checkpoints, and what it was at each of them."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Self
from uuid import UUID

from cenote.agent_life import AgentLife
from cenote.engine.checkpoint import Checkpoint
from cenote.engine.checkpoint_draft import wish
from cenote.engine.conflict_log import wanted
from cenote.engine.entries import BLOB
from cenote.engine.past import Difference, History, Past
from cenote.engine.restored import Restored, Restoring
from cenote.engine.retention import Retention
from cenote.engine.waiting import until_mended
from cenote.errors import AlreadyExistsError, RejectedError
from cenote.model import value as values
from cenote.model.duration import seconds
from cenote.model.kept import Kept
from cenote.model.key import RESERVED_AGENTS, agent_ref
from cenote.model.page import Page

_CONFLICTS_MAX = 1_000


class AgentPast(AgentLife):
    """The part of `AgentState` that keeps what was."""

    async def checkpoint(
        self,
        label: str | None = None,
        *,
        metadata: object = None,
        keep: bool = False,
        deadline: timedelta | float | None = None,
    ) -> Checkpoint:
        """Keep what this agent is now: all of its keys as they are at one moment of the stream, whoever writes
        meanwhile. What this process has written before is in it.

        Args:
            label: for people, 200 characters at most.
            metadata: for programs, 64 KiB encoded at most.
            keep: retention never removes it.
            deadline: how long to try; default `retry.deadline_ms`.

        Raises:
            UnavailableError: NATS or PostgreSQL does not answer, or no consistent cut was made within the deadline;
                nothing was kept.
        """
        limit_s = seconds(deadline, "deadline")
        of = wish(label, metadata, keep=keep)
        return await self._machines.checkpoints.create(self._agent, of, None if limit_s is None else limit_s * 1000)

    async def checkpoints(self, *, cursor: str | None = None, limit: int = 100) -> Page[Checkpoint]:
        """What was kept of this agent, the newest first; `cursor`: the `.next` of the page before. Raises
        UnavailableError."""
        return await self._machines.checkpoints.page(self._agent, cursor, limit)

    async def find_checkpoint(self, checkpoint: UUID | str) -> Checkpoint:
        """The checkpoint of this agent with this id. NotFoundError for an unknown one and for another agent's."""
        return await self._machines.checkpoints.find(self._agent, checkpoint)

    async def delete_checkpoint(self, checkpoint: Checkpoint | UUID | str) -> None:
        """Remove a checkpoint, whether it was to be kept or not; those that stand on it stay whole.

        Raises:
            NotFoundError: there is none of this id, or it is another agent's.
            UnavailableError: it is still there; a restore may need it just now.
        """
        await Retention(self._core, self._machines.checkpoints).remove(self._agent, checkpoint)

    async def restore(self, checkpoint: Checkpoint | UUID | str) -> Restored:
        """Become again what a checkpoint holds. What differs is written anew, deletes included; what has expired since
        stays away. What the agent is now is kept as a checkpoint first: `.before`.

        A key that others write after `.before` stays as they wrote it (`.left`). Up to 1,000 keys that differ, and 16
        MiB, are one atomic batch; more are several, and `restoring()` says so until it is done, in any process. When
        this process dies in between, the flusher finishes it within a minute, or the next `restore` at once.

        Raises:
            NotFoundError: it is no checkpoint of this agent.
            UnknownFormat, ConsistencyError: it is of a newer format, or damaged; nothing was written.
            UnavailableError, BackpressureError, ConflictError: nothing was written, or `restoring()` shows the rest.
        """
        return (await self._machines.restorer.restore([(self._agent, checkpoint)]))[0]

    async def fork(self, new_agent: str | UUID, checkpoint: Checkpoint | UUID | str) -> Self:
        """Another agent that begins as what a checkpoint of this one holds; both go their own ways from there. It takes
        one row: the values are copied when somebody first reads one that was not written anew, or all.

        Raises:
            AlreadyExistsError: there is, or was a moment ago, an agent of that name.
            NotFoundError: it is no checkpoint of this agent.
            RejectedError: that cannot be an agent's name.
            UnavailableError: NATS or PostgreSQL does not answer.
        """
        core, new = self._core, agent_ref(new_agent)
        if new in RESERVED_AGENTS:
            raise RejectedError(f"new_agent: {new.text!r} is {RESERVED_AGENTS[new]}", hint="take another agent id")
        found = await self._machines.checkpoints.find(self._agent, checkpoint)
        await until_mended(core, core.config.kv.deadline_ms)
        known = False
        async for _ in core.live(core.agent_filter(new)):
            known = True
        if known or not await core.rows.begin(new, found.id, self._agent):
            raise AlreadyExistsError(
                f"the agent {new.text!r} exists already",
                hint="fork into a new name, or restore a checkpoint of its own",
            )
        return type(self)(self._machines, new)

    async def restoring(self) -> Restoring | None:
        """The restore of this agent that is not finished: until then its keys are partly of the checkpoint, partly as
        before. Raises UnavailableError."""
        return await self._machines.restorer.restoring(self._agent)

    async def finish_restore(self) -> list[Restored]:
        """Go on with a restore of this agent that somebody has begun; [] when there is none. Raises as `restore`."""
        return await self._machines.restorer.finish(self._agent)

    async def export(self) -> AsyncIterator[bytes]:
        """This agent with all of its checkpoints, the last of which is made now, as lines of a file for
        `store.import_agent`.

        Raises:
            UnavailableError: the servers went away, or checkpoints were removed meanwhile: begin a new file.
            ConsistencyError: a checkpoint is damaged.
        """
        async for line in self._machines.transfer.exported(self._agent):
            yield line

    async def diff(self, a: Checkpoint | UUID | str, b: Checkpoint | UUID | str) -> Difference:
        """What became of the keys from `a` to `b`. Raises NotFoundError, ConsistencyError (a checkpoint is damaged),
        CodecError (a newer cenote made it) and UnavailableError."""
        return await self._past.difference(a, b)

    async def history(self, key: str) -> History:
        """What is still known of a key's past: the versions that checkpoints keep, and the conflict log. Others were
        overwritten and are kept nowhere. Raises as `diff`."""
        core = self._core
        core.target(self._agent, key)  # a key, or RejectedError
        of = wanted(core.now_ms(), self._agent.text, key, None, None, _CONFLICTS_MAX)
        return History(tuple(await self._past.versions(key)), tuple(await self._machines.conflicts.find(of)))

    @property
    def _past(self) -> Past:
        return Past(self._machines.checkpoints, self._core.blobs, self._agent)

    async def _get_at(self, key: str, default: Any, into: type[Any] | None, at: Checkpoint | UUID | str) -> Any:
        self._core.target(self._agent, key)
        kept = await self._past.kept(at, key)
        return default if kept is None else _decoded(kept, into)

    async def _items_at(
        self, prefix: str, into: type[Any] | None, at: Checkpoint | UUID | str
    ) -> AsyncIterator[tuple[str, Any]]:
        past, checkpoints = self._past, self._machines.checkpoints
        mark = await checkpoints.find(self._agent, at)
        async for page in checkpoints.fold(self._agent, mark.seq):
            for kept in page:
                if kept.key.startswith(prefix):
                    yield kept.key, _decoded(await past.whole(kept) if kept.codec == BLOB else kept, into)


def _decoded(kept: Kept, into: type[Any] | None) -> Any:
    value = values.decode(kept.codec, kept.body)
    return value if into is None else values.decode_into(value, into)
