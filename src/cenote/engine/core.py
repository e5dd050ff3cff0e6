"""What the machines of one store share: the tiers, the epochs, L1, and the probe that keeps them honest (I4, I8, I15;
flow rules 8, 9, 10).

Once a second the probe asks the stream's leader for its last sequence. A difference to what the republish feed has
shown drops L1; three seconds of silence end its coherence; a stream created anew begins an epoch. A process without an
L1, that flushes nothing, need not ask so often while all is well.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from cenote import limits
from cenote.config import Config
from cenote.engine import entries
from cenote.engine.belonging import settle
from cenote.engine.blobs import Blobs
from cenote.engine.cache import Cache
from cenote.engine.chores import Chore
from cenote.engine.coherence import Coherence
from cenote.engine.counts import Counts
from cenote.engine.durability import Durability
from cenote.engine.entries import Target
from cenote.engine.epoch import DURABLE_KEY, FORMAT_KEY, MENDED_KEY, Epochs
from cenote.engine.forks import Forks
from cenote.engine.fullness import Begun, Fullness
from cenote.engine.incarnation import durable_prefix, incarnation, mended_mark
from cenote.engine.late import Late
from cenote.engine.replicas import Replicas
from cenote.errors import CenoteError, OutcomeUnknownError, SetupError, UnavailableError
from cenote.kv.bucket import StreamInfo
from cenote.kv.consumer import ConsumerInfo, consumer_info
from cenote.kv.errors import JsNotFound, TooManyResults
from cenote.kv.link import Link
from cenote.kv.message import Message
from cenote.kv.stream import StateStream
from cenote.model import key as keys
from cenote.model.entry import FORMAT, Stored
from cenote.naming import Names
from cenote.retry import Backoff
from cenote.sql.pool import Database
from cenote.sql.state import StateTable

if TYPE_CHECKING:
    from cenote.engine.spans import Spans

log = logging.getLogger("cenote.engine")


class _Reading:
    """Slots and no generator: every read enters one."""

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OutcomeUnknownError):
            raise UnavailableError(str(error), key=error.key, tier=error.tier) from error


_READING = _Reading()


def reading() -> _Reading:
    """A read whose answer was lost may simply be made again: the tier is unavailable, nothing is unknown."""
    return _READING


class Core:
    """The shared state of one open store. Built closed; `start()` connects it, `close()` ends it."""

    def __init__(self, config: Config, names: Names, link: Link, db: Database, writer_id: str) -> None:
        self.config = config
        self.names = names
        self.link = link
        self.db = db
        self.writer_id = writer_id
        self.stream = StateStream(link, names, timeout_ms=config.kv.request_timeout_ms)
        self.table = StateTable(db, names)
        self.rows = Forks(self.table)
        self.blobs = Blobs(self.table)
        self.cache = Cache(config.memory.entries_max, config.memory.bytes_max, config.memory.ttl_s)
        self.coherence = Coherence(self.stream, names, self.cache, lambda: self.epochs, writer_id)
        self.replicas: Replicas | None = None
        self.incarnation = ""
        self.durability = Durability(self.table, lambda: self.epochs.newest)
        self.counts = Counts()
        self.late = Late()
        self.epochs = Epochs("", "", (0,), (0,))
        self.own_sequence = 0
        self.durable_name: str | None = None
        self.format = 1  # of what is written, and read by every process of the store (flow rule 22)
        self.current_durable: str | None = None
        """The durable of this epoch and this start of the KV server; the floor of any other says nothing (F-gen)."""
        self.fullness = Fullness(config, link, names, self._look)
        self.last_sequence = 0
        self.entries = 0
        self.copies, self.bytes_max = 1, -1  # of the stream, as its leader describes it
        self.seen_sequence = 0
        self.mended = 0
        """The connection over which KV is known to be no older than SQL: reads from KV need that (F-wait)."""
        self.owned = False
        """Whether the KV server is an embedded one: those do not come up before nothing can be lost."""
        self.spans: Spans | None = None
        """Set where traces are asked for."""
        self.volunteer: Callable[[], Awaitable[None]] | None = None
        """Compares KV with SQL, if nobody flushes; set by whoever wires the machines."""
        self.trim: Callable[[], Awaitable[None]] | None = None
        """Keeps the conflict log within its bound, if nobody else does; set by the log."""
        self.mended_lock = asyncio.Lock()
        self.announced = False
        """Whether the stream's metadata says so, for everybody."""
        self.on_close: list[Callable[[], None]] = []
        self.chores: list[Chore] = []
        self._prefix_length = len(self.stream.prefix)
        self._probe_now = asyncio.Event()
        self._calm = False
        self.coherence.on_listen = self.stir
        self._probe_task: asyncio.Task[None] | None = None
        self._closed = False

    # --- life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find or create the bucket, learn the epochs, begin to probe."""
        generation = self.link.generation
        info = await self._settle()
        self._learn(info)
        self.stream.trust(generation)
        self.link.on_connect.append(self._reconnected)
        self.link.on_disconnect.append(self.durability.disconnected)
        self._probe_task = asyncio.create_task(self._probe(), name="cenote-probe")

    async def close(self) -> None:
        """Stop probing and listening; the link and the pool are closed by whoever opened them."""
        self._closed = True
        for tell in self.on_close:
            tell()
        self.fullness.close()
        if self._probe_task is not None:
            self._probe_task.cancel()
            await asyncio.gather(self._probe_task, return_exceptions=True)
        self.coherence.close()
        await self.durability.close()

    def admit(self, size: int = 0, *, deleting: bool) -> None:
        """Refuse a write before anything is sent, when the store is closed, NATS is out or there is no room (I15)."""
        if self._closed:
            raise _closed()
        self.link.demand()
        self.fullness.admit(size, deleting=deleting)

    def admit_all(self, sizes: Sequence[int]) -> None:
        """The same for writes that are taken all or none."""
        if self._closed:
            raise _closed()
        self.link.demand()
        self.fullness.admit_all(sizes)

    # --- names ----------------------------------------------------------------------------------------------

    def target(self, agent: keys.AgentRef, key: str) -> Target:
        """Every spelling of one key. RejectedError when it is too long."""
        subject = keys.subject(self.stream.prefix, agent, key)
        return Target(agent, key, subject, subject.encode("ascii"), keys.sql_key(key))

    def split(self, subject: str) -> tuple[str, str]:
        """A subject's agent token and key token."""
        token, _, key_token = subject[self._prefix_length :].partition(".")
        return token, key_token

    def agent_filter(self, agent: keys.AgentRef) -> str:
        """The subject filter of all keys of an agent."""
        return f"{self.stream.prefix}{agent.token}.>"

    # --- time -----------------------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """The KV server's clock for judging expiry; this machine's while the server's is not known yet."""
        try:
            return self.link.server_now_ms()
        except UnavailableError:
            return time.time_ns() // 1_000_000

    def sent_ms(self) -> int:
        """A lower bound of the KV server's time, for what is sent now (F-time); 0 while it is not known."""
        return self.link.clock.now_ms() or 0

    @property
    def skew_ms(self) -> int:
        """How far the times of two servers may be apart; 0 where there is but one."""
        return 0 if self.replicas is None else limits.CLUSTER_SKEW_MS_MAX

    def gone(self, stored: Stored) -> bool:
        """Whether a read must treat this as absent now. The clock is read only for what can expire."""
        return stored.deleted or (stored.expires_ms is not None and stored.expires_ms <= self.now_ms())

    # --- reads ----------------------------------------------------------------------------------------------

    async def message(self, target: Target, timeout_ms: int | None = None) -> Message | None:
        """A key's message by direct get; in a cluster none that is older than what this process has seen (rule 9)."""
        if self.replicas is not None:
            return await self.replicas.message(target, timeout_ms or self.config.kv.request_timeout_ms)
        return await self.stream.get(target.wire, timeout_ms)

    async def leader_message(self, target: Target, timeout_ms: int | None = None) -> Message | None:
        """A key's message as the stream's leader holds it; one server is its own leader."""
        if self.replicas is not None:
            return await self.replicas.leader_message(target, timeout_ms or self.config.kv.request_timeout_ms)
        return await self.stream.get(target.wire, timeout_ms)

    async def leader(self, target: Target, timeout_ms: int) -> Stored | None:
        """The leader's entry of a key."""
        message = await self.leader_message(target, timeout_ms)
        return None if message is None else entries.from_message(message, self.epochs)

    def attempt_ms(self, backoff: Backoff) -> int:
        """How long the next attempt of a call may take: `kv.request_timeout_ms`, or what is left of its deadline."""
        return max(1, min(self.config.kv.request_timeout_ms, int(backoff.left_ms)))

    async def messages(self, targets: list[Target]) -> tuple[dict[str, Message], int | None]:
        """Many keys' messages by subject (at most 1,024 keys), and the sequence up to which they are one snapshot;
        None when nothing was found, or they are too large for one answer and were read one by one."""
        if self.replicas is not None:
            return await self.replicas.messages(targets, self.config.kv.request_timeout_ms)
        try:
            messages, end = await self.stream.multi_get([target.subject for target in targets])
        except TooManyResults:
            answers = await asyncio.gather(*(self.message(target) for target in targets))
            return {message.subject: message for message in answers if message is not None}, None
        return {message.subject: message for message in messages}, end

    async def live(self, filter_subject: str, first: int = 1) -> AsyncIterator[Message]:
        """Live entries in sequence order. UnavailableError when the listing cannot be completed: it is never short."""
        source = self.stream if self.replicas is None else self.replicas
        with reading():
            async for message in source.live(filter_subject, first):
                yield message

    def met(self, subject: str, sequence: int) -> None:
        """This process has written or shown a key at this sequence; in a cluster followers may not know it yet."""
        if self.replicas is not None:
            self.replicas.met(subject, sequence)

    async def consumer(self, name: str) -> ConsumerInfo | None:
        """The flusher's durable; None when there is no such consumer."""
        return await consumer_info(self.link, self.stream.name, name)

    @property
    def met_sequence(self) -> int:
        """The highest sequence that this process knows of: the leader told it, or acknowledged a write of ours."""
        return max(self.seen_sequence, self.own_sequence)

    def went_back(self) -> None:
        """An acknowledgement shows that the stream counts anew, over this very connection: what L1 holds is of its life
        before, and would look newer than what is written now."""
        self.coherence.restart()
        self._probe_now.set()

    # --- the probe ------------------------------------------------------------------------------------------

    def _reconnected(self) -> None:
        self.coherence.restart()
        self._probe_now.set()

    def stir(self) -> None:
        """Something is odd, or begins to count on the probe."""
        if self._calm:
            self._probe_now.set()

    def _all_well(self) -> bool:
        """Whether nobody counts on a look each second: no L1 (rule 10), no followers, no flusher here, nobody who
        waits for SQL; and the stream's server start is settled, with room to spare."""
        busy = self.coherence.following or self.durability.hurry is not None or self.durability
        settled = self.mended == self.link.generation and self.current_durable is not None
        return settled and not busy and self.replicas is None and self.fullness.roomy

    async def _probe(self) -> None:
        while True:
            try:
                await self.probe_once()
                self._calm = self._all_well()
            except CenoteError as error:
                log.debug("probe: %s", error)
                self._calm = False
            try:
                async with asyncio.timeout((limits.PROBE_CALM_MS if self._calm else limits.PROBE_INTERVAL_MS) / 1000):
                    await self._probe_now.wait()
            except TimeoutError:
                pass
            self._probe_now.clear()

    async def probe_once(self) -> None:
        """One look at the stream: epoch, backlog, fill, and whether the feed has shown everything."""
        if self.link.out:
            await self.link.knock(limits.SILENCE_MS_MAX // 1000)
        generation, begun = self.link.generation, self.fullness.begin()
        try:
            async with asyncio.timeout(limits.SILENCE_MS_MAX / 1000):
                info: StreamInfo | None = await self.stream.info(limits.SILENCE_MS_MAX)
        except JsNotFound:
            info = None  # somebody deleted the bucket
        except TimeoutError as error:
            raise UnavailableError("the stream's leader does not answer", tier="DISTRIBUTED_KV") from error
        if info is None or self.epochs.differ(info.metadata, info.created):
            info = await self._settle()
            self.coherence.restart()
        self._learn(info)
        self.stream.trust(generation)
        if self.link.generation == generation:
            self.coherence.probed(info.last_seq)
        if self.fullness.unchanged(info, self.durable_name):
            self.fullness.measure(info, begun)
        else:
            await self._count(info, begun)

    async def _look(self) -> None:
        """How full it is, and nothing else: L1's coherence counts on probes that are a second apart."""
        begun = self.fullness.begin()
        await self._count(await self.stream.info(limits.SILENCE_MS_MAX), begun)

    async def _count(self, info: StreamInfo, begun: Begun) -> None:
        name = self.durable_name
        self.fullness.learn(info, None if name is None else await self.consumer(name), name, begun)

    async def _settle(self) -> StreamInfo:
        self.db.store_id = None  # if it was given to this stream, its newest store is another one than before
        try:
            epochs, info = await settle(
                self.link, self.stream, self.table, self.names, self.config, before=self.epochs.store_id
            )
        except SetupError as stranger:
            self.stream.distrust(stranger)
            raise
        self.db.store_id = epochs.store_id
        if epochs != self.epochs:
            if self.epochs.created:
                log.warning("epoch %d begins: the stream of %s is another one", epochs.newest, info.created)
            self.mended = self.seen_sequence = self.own_sequence = 0  # they speak of another life of the stream
            if self.replicas is not None:
                self.replicas.forget()
        self.epochs = epochs
        return info

    def _learn(self, info: StreamInfo) -> None:
        if self.replicas is None and info.config.get("num_replicas", 1) > 1:
            self.replicas = Replicas(self.stream, self.coherence)
            self.coherence.met = self.replicas.met
        self.durable_name = info.metadata.get(DURABLE_KEY)
        self.format = min(FORMAT, int(info.metadata.get(FORMAT_KEY, 1)))
        self.last_sequence = info.last_seq
        # A majority took over what the leader before had acknowledged: reads need not wait, if nothing is missing.
        goes_on = self.replicas is not None and self.mended and info.last_seq >= self.met_sequence
        self.seen_sequence = max(self.seen_sequence, info.last_seq)
        self.entries = info.messages
        self.copies, self.bytes_max = info.config.get("num_replicas", 1), info.config.get("max_bytes", -1)
        self.incarnation = start = incarnation(self.link, info)
        name = self.durable_name or ""
        self.current_durable = name if start and name.startswith(durable_prefix(self.epochs.newest, start)) else None
        self.announced = info.metadata.get(MENDED_KEY) == mended_mark(self.epochs.newest, start)
        if start and (self.owned or goes_on or self.announced):
            self.mended = info.generation


def _closed() -> SetupError:
    return SetupError("this store is closed", hint="open it again with cenote.open()")
