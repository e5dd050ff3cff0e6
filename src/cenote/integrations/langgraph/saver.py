"""LangGraph's checkpointer (langgraph-checkpoint 4.3): the methods it calls, with and without `await`."""

from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from random import random
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from cenote import blocking
from cenote.errors import RejectedError
from cenote.integrations.bridge import Bridge
from cenote.integrations.langgraph import records, thinning
from cenote.integrations.langgraph.shelf import Found, Shelf
from cenote.store import Store

_PAGE: Final = 32
_PREFIX_CHARS_MAX: Final = 32


class CenoteSaver(BaseCheckpointSaver[Any]):
    """Keeps the checkpoints of graphs in a store: acknowledged by NATS, in PostgreSQL a moment later.

    A thread is the agent `langgraph/<thread id>`, so everything that works for agents works for it: `cenote ls`, the
    dashboard, exports. Several processes may share a thread; of what they write nothing is lost, and the newest
    checkpoint is the head.

    Args:
        store: from `cenote.open()`, to be used on its event loop and, by the methods without `await`, from other
            threads; or from `cenote.blocking.open()`, to be used from anywhere.
        prefix: keeps users of one store apart, e.g. tenants or tests: 1 to 32 letters, digits, `-` and `_`.
        serde: turns channel values into bytes; LangGraph's own when None. An `EncryptedSerializer` keeps them secret.

    Raises:
        SetupError: an async store, and no event loop runs here.
        RejectedError: the prefix.
    """

    def __init__(
        self, store: Store | blocking.Store, *, prefix: str = "langgraph", serde: SerializerProtocol | None = None
    ) -> None:
        super().__init__(serde=serde)
        if not (0 < len(prefix) <= _PREFIX_CHARS_MAX and prefix.isascii() and prefix.replace("-", "_").isidentifier()):
            raise RejectedError(f"prefix {prefix!r}: 1 to {_PREFIX_CHARS_MAX} letters, digits, - and _")
        # LangGraph makes shallow copies of savers: whatever changes is in these two, which copies share.
        self._bridge = Bridge(store)
        self._shelf = Shelf(self._bridge.store, prefix)

    # --- one checkpoint -------------------------------------------------------------------------------------

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint; the config that names it."""
        work, named = self._put(config, checkpoint, metadata, new_versions)
        await self._bridge.cross(work)
        return named

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """As `aput`."""
        work, named = self._put(config, checkpoint, metadata, new_versions)
        self._bridge.wait(work)
        return named

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Keep what a task wrote on top of a checkpoint; what it wrote before under the same index stays, but for
        errors, interrupts, resumes and schedules, which replace."""
        await self._bridge.cross(self._put_writes(config, writes, task_id, task_path))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """As `aput_writes`."""
        self._bridge.wait(self._put_writes(config, writes, task_id, task_path))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that a config names, or the newest of its thread and namespace."""
        thread, ns = _place(config)
        found = await self._bridge.cross(self._shelf.load(thread, ns, get_checkpoint_id(config)))
        return None if found is None else self._tuple(thread, found)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As `aget_tuple`."""
        thread, ns = _place(config)
        found = self._bridge.wait(self._shelf.load(thread, ns, get_checkpoint_id(config)))
        return None if found is None else self._tuple(thread, found)

    def get_next_version(self, current: int | str | None, channel: None) -> int | str:
        """1, 2, 3, …; the versions of a thread that came from a saver which writes them as text go on as text, by its
        rule: the number, then a fraction that keeps branches apart."""
        if isinstance(current, str):
            return f"{int(current.split('.')[0]) + 1:032}.{random():016}"
        return 1 if current is None else current + 1

    # --- many -----------------------------------------------------------------------------------------------

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Checkpoints, the newest first: of a thread (and namespace), or of all; those whose metadata hold `filter`,
        with an id before another's."""
        places = _wanted(await self._bridge.cross(self._shelf.newest_first(*_area(config))), config, before)
        for start in range(0, len(places), _PAGE):
            page = places[start : start + _PAGE]
            for found in self._fitting(page, await self._bridge.cross(self._shelf.many(page)), filter):
                if limit is not None and limit <= 0:
                    return
                yield found
                limit = None if limit is None else limit - 1

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """As `alist`."""
        places = _wanted(self._bridge.wait(self._shelf.newest_first(*_area(config))), config, before)
        for start in range(0, len(places), _PAGE):
            page = places[start : start + _PAGE]
            for found in self._fitting(page, self._bridge.wait(self._shelf.many(page)), filter):
                if limit is not None and limit <= 0:
                    return
                yield found
                limit = None if limit is None else limit - 1

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What each channel was last stored as before a checkpoint, and the writes since, on the way to it."""
        return self._delta(await self._bridge.cross(self._history(config, channels)))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """As `aget_delta_channel_history`."""
        return self._delta(self._bridge.wait(self._history(config, channels)))

    # --- threads --------------------------------------------------------------------------------------------

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete everything of a thread."""
        await self._bridge.cross(thinning.delete_thread(self._shelf, str(thread_id)))

    def delete_thread(self, thread_id: str) -> None:
        """As `adelete_thread`."""
        self._bridge.wait(thinning.delete_thread(self._shelf, str(thread_id)))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete what these runs made. Later checkpoints stay whole; nothing may run in their threads meanwhile."""
        await self._bridge.cross(thinning.delete_runs(self._shelf, run_ids))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """As `adelete_for_runs`."""
        self._bridge.wait(thinning.delete_runs(self._shelf, run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy everything of a thread into another."""
        await self._bridge.cross(thinning.copy(self._shelf, str(source_thread_id), str(target_thread_id)))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """As `acopy_thread`."""
        self._bridge.wait(thinning.copy(self._shelf, str(source_thread_id), str(target_thread_id)))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Thin threads out: `keep_latest` keeps the newest checkpoint of each namespace, and the ancestors that its
        delta channels need; `delete` keeps nothing. Nothing may run in them meanwhile."""
        await self._bridge.cross(self._prune(thread_ids, strategy))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """As `aprune`."""
        self._bridge.wait(self._prune(thread_ids, strategy))

    # --- what both twins share --------------------------------------------------------------------------------

    def _put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata, versions: ChannelVersions
    ) -> tuple[Coroutine[Any, Any, None], RunnableConfig]:
        thread, ns = _place(config)
        said = get_serializable_checkpoint_metadata(config, metadata)
        draft = records.draft(self.serde, (ns, get_checkpoint_id(config)), checkpoint, said, versions)
        return self._shelf.put(thread, draft, self.serde), _config(thread, ns, checkpoint["id"])

    def _put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> Coroutine[Any, Any, None]:
        thread, ns = _place(config)
        checkpoint_id = get_checkpoint_id(config)
        if checkpoint_id is None:
            raise RejectedError(
                "put_writes: the config names no checkpoint", hint="give it the config that put returned"
            )
        numbered = records.numbered(writes, self.serde)
        return self._shelf.put_writes(thread, (ns, checkpoint_id), (task_id, task_path), numbered)

    def _history(self, config: RunnableConfig, channels: Sequence[str]) -> Coroutine[Any, Any, Any]:
        return self._shelf.history(*_place(config), get_checkpoint_id(config), channels)

    async def _prune(self, thread_ids: Sequence[str], strategy: str) -> None:
        if strategy not in ("keep_latest", "delete"):
            raise ValueError(f"unknown strategy {strategy!r}: keep_latest or delete")
        thin = thinning.delete_thread if strategy == "delete" else thinning.keep_latest
        for thread in thread_ids:
            await thin(self._shelf, str(thread))

    def _delta(self, found: Mapping[str, Any]) -> Mapping[str, DeltaChannelHistory]:
        told: dict[str, DeltaChannelHistory] = {}
        for name, (writes, seed) in found.items():
            told[name] = {"writes": _loaded(writes, self.serde)}
            if seed is not None:
                told[name]["seed"] = self.serde.loads_typed(seed)
        return told

    def _fitting(
        self, page: Sequence[tuple[str, str, str]], found: Sequence[Found | None], wanted: Mapping[str, Any] | None
    ) -> Iterator[CheckpointTuple]:
        for (thread, _, _), one in zip(page, found, strict=True):
            if one is None:
                continue
            metadata: Any = records.metadata_of(one.record, one.body, self.serde)
            if all(name in metadata and metadata[name] == value for name, value in (wanted or {}).items()):
                yield self._tuple(thread, one)

    def _tuple(self, thread: str, found: Found) -> CheckpointTuple:
        record, body = found.record, found.body
        return CheckpointTuple(
            config=_config(thread, record["ns"], record["id"]),
            checkpoint=records.checkpoint_of(record, body, found.values, self.serde),
            metadata=records.metadata_of(record, body, self.serde),
            parent_config=_config(thread, record["ns"], record["parent"]) if record["parent"] else None,
            pending_writes=_loaded(found.writes, self.serde),
        )


def _loaded(writes: Sequence[tuple[str, str, records.Typed]], serde: SerializerProtocol) -> list[tuple[str, str, Any]]:
    return [(task, channel, serde.loads_typed(value)) for task, channel, value in writes]


def _place(config: RunnableConfig) -> tuple[str, str]:
    named = config["configurable"]
    return str(named["thread_id"]), named.get("checkpoint_ns", "")


def _area(config: RunnableConfig | None) -> tuple[str | None, str | None]:
    if config is None:
        return None, None
    named = config["configurable"]
    return str(named["thread_id"]), named.get("checkpoint_ns")


def _wanted(
    places: list[tuple[str, str, str]], config: RunnableConfig | None, before: RunnableConfig | None
) -> list[tuple[str, str, str]]:
    only = get_checkpoint_id(config) if config else None
    end = get_checkpoint_id(before) if before else None
    return [place for place in places if (only is None or place[2] == only) and (end is None or place[2] < end)]


def _config(thread: str, ns: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}}
