"""Interleavings that the rules of the flow exclude, of writers: who may say "durable", "absent" and "again"."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
import pytest

import cenote
from cenote.agent import AgentState
from cenote.engine import barrier
from cenote.engine.barrier import Barrier
from cenote.engine.core import Core
from cenote.engine.durability import Durability
from cenote.engine.entries import Target
from cenote.engine.epoch import Epochs
from cenote.engine.hydrator import Hydrator
from cenote.engine.meeting import Meeting, Next
from cenote.engine.receipt import Receipt
from cenote.engine.writer import Writer
from cenote.errors import UnavailableError
from cenote.kv.errors import AnswerLost
from cenote.kv.link import Link
from cenote.kv.stream import sequence_of
from cenote.model.entry import Stored
from cenote.model.key import sql_key
from cenote.sql.state import StateTable
from cenote.store import Store
from cenote.testing import FaultProxy, TestServers
from witness import another, at, demand, eventually, evict_all, in_kv, reached, tables, toothed

QUICK = {"flush__drain_ms": 0}
NOBODY_FLUSHES = QUICK | {"flush__enabled": False}


# --- the rules, taken out -----------------------------------------------------------------------------------


def the_keys_above_the_floor(patch: pytest.MonkeyPatch) -> None:
    """`flush()` is done when the consumer's floor says so."""

    async def nothing(self: Barrier, wanted: barrier.Wanted) -> None: ...

    patch.setattr(Barrier, "_committed", nothing)


def the_row_of_a_receipt(patch: pytest.MonkeyPatch) -> None:
    """A receipt is durable when the consumer's floor has passed it."""

    async def durable(self: Receipt, timeout: float | None = None) -> Receipt:
        while await floor(self._core) < self.version.revision:
            await asyncio.sleep(0.005)
        return self

    patch.setattr(Receipt, "durable", durable)


def the_look_below_a_floor_that_stands(patch: pytest.MonkeyPatch) -> None:
    """`flush()` waits for the floor, whether anything lives below it or not."""

    async def always(self: Barrier, first: int, last: int) -> bool:
        return True

    patch.setattr(Barrier, "_any_live", always)


def the_time_of_a_row(patch: pytest.MonkeyPatch) -> None:
    """A row of the key at a higher sequence will do, whenever it was written (F-time)."""
    plain = Durability._tell
    patch.setattr(Durability, "_tell", lambda self, place, version, _: plain(self, place, version, 1 << 62))


def the_copy_below_a_write(patch: pytest.MonkeyPatch) -> None:
    """A write over what KV lacks expects "nothing" (F-mark)."""

    async def install(self: Hydrator, wire: bytes, stored: Stored, *, over: int, **_: Any) -> Stored:
        return msgspec.structs.replace(stored, sequence=over)

    patch.setattr(Hydrator, "install", install)


def absence_asked_of_sql(patch: pytest.MonkeyPatch) -> None:
    """What KV lacks does not exist."""

    async def nothing(self: StateTable, agent_id: Any, key: str) -> None:
        return None

    patch.setattr(StateTable, "read_or_forked", nothing)


def the_epoch_of_a_version(patch: pytest.MonkeyPatch) -> None:
    """A version is a bare sequence."""
    patch.setattr(Epochs, "at", lambda self, time_us: 1)


def no_buffer_over_a_reconnect(patch: pytest.MonkeyPatch) -> None:
    """What is written while there is no connection is sent when there is one, as a client library may do."""
    plain = Link._send_request

    def send(self: Link, subject: bytes, token: bytes, header: bytes, payload: bytes) -> None:
        if not self.connected and header:
            self.on_connect.append(partial(plain, self, subject, b"late", header, payload))
        plain(self, subject, token, header, payload)

    patch.setattr(Link, "_send_request", send)


def the_operation_at_the_leader(patch: pytest.MonkeyPatch) -> None:
    """A write whose answer was lost is sent again."""

    async def blindly(
        self: Writer, target: Any, header: bytes, body: bytes, operation: str, error: Exception, *, began: float
    ) -> int:
        while True:
            try:
                return sequence_of(await self._send(target, header, body, 1_000))
            except (UnavailableError, AnswerLost):
                await asyncio.sleep(0.02)

    patch.setattr(Writer, "_insist", blindly)


def the_blob_before_its_entry(patch: pytest.MonkeyPatch) -> None:
    """The bytes of a large value follow its entry, if the process lives so long."""

    async def insert_blob(self: StateTable, *blob: Any) -> None: ...

    patch.setattr(StateTable, "insert_blob", insert_blob)


def the_clock_of_the_server(patch: pytest.MonkeyPatch) -> None:
    """Each process judges expiry and age by its own clock."""
    patch.setattr(Core, "now_ms", lambda self: time.time_ns() // 1_000_000)


def an_expired_entry_as_a_tombstone(patch: pytest.MonkeyPatch) -> None:
    """What KV holds exists, expired or not."""
    patch.setattr(Core, "gone", lambda self, stored: stored.deleted)


def the_expiry_that_an_update_keeps(patch: pytest.MonkeyPatch) -> None:
    """An update writes a new value, which lives for ever."""
    plain = Meeting._next

    def for_ever(self: Meeting, target: Target, current: Any, value: object, expires_ms: int | None) -> Next:
        return plain(self, target, current, value, None)

    patch.setattr(Meeting, "_next", for_ever)


# --- rule 1: durable ----------------------------------------------------------------------------------------


@toothed(the_keys_above_the_floor, the_row_of_a_receipt)
async def test_i1_the_floor_proves_nothing_about_a_superseded_message(cenote_servers: TestServers) -> None:
    """Flow rule 1, first half: a flusher holds two messages and has committed nothing; one is superseded, it settles
    the other, and the floor passes both."""
    place = cenote_servers.by_url(**QUICK)
    async with cenote.open(**place) as flusher:
        await flusher.agent("i1").put("begins the durable", 1, durability="sql")
    async with cenote.open(**place | NOBODY_FLUSHES) as store, tables(cenote_servers, store) as sql:
        agent, core = store.agent("i1"), store._core
        receipt, settled = await agent.put("n", 5), await agent.put("o", 6)
        async with pulled(core, 2) as acks:
            flush = Begun(core)
            async with under_way(flush.everything(20), receipt.durable(20)) as waiting:
                await reached(lambda: flush.start, "flush() knows what it waits for")
                assert flush.start == settled.version.revision
                await agent.put("n", 7)
                core.link.send(acks[1], b"", b"+ACK")

                async def passed() -> bool:
                    return await floor(core) >= settled.version.revision

                await reached(passed, "the floor passes the superseded message")
                done, _ = await asyncio.wait(waiting, timeout=0.4, return_when=asyncio.FIRST_COMPLETED)
                row = await sql.value(agent, "n")
                demand(not done, f"I1: {[one.exception() or one.result() for one in done]}, while SQL has {row}")


@pytest.mark.judge
@toothed(the_look_below_a_floor_that_stands)
async def test_i16_a_flush_ends_though_the_end_of_the_stream_was_removed(cenote_servers: TestServers) -> None:
    """Flow rule 1, second half: the floor stays below the stream's last sequence, and nothing is left to deliver."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store:
        agent, flusher = store.agent("i16"), store._machines.flusher
        await agent.put("k", 1, durability="sql")
        assert flusher is not None
        await flusher.stop()
        last = await agent.put("tail", 2)
        await purge(store, agent, "tail")
        flusher.start()
        try:
            await store.flush(3)
        except cenote.NotDurableError:
            demand(False, "I16: flush() waits for a message that nobody has any more")
        assert await floor(store._core) < last.version.revision, "the floor does not stand still: nothing was shown"


@toothed(the_time_of_a_row)
async def test_i1_a_row_of_another_life_of_the_stream_is_not_about_this_write(cenote_servers: TestServers) -> None:
    """Flow rule 1, F-time: the stream lost its end; SQL holds a higher sequence of the key, from before."""
    async with (
        cenote.open(**cenote_servers.fresh(**NOBODY_FLUSHES)) as store,
        tables(cenote_servers, store) as sql,
    ):
        agent = store.agent("i1")
        await sql.link.execute(
            f"INSERT INTO {sql.schema}.state (agent_id, key, value, version, epoch, kv_time, deleted, quarantined,"
            " updated_at) VALUES ($1, $2, '\"of the lost end\"', 1000000, $3,"
            " now() - interval '1 minute', false, false, now())",
            agent.id, sql_key("k"), store._core.epochs.newest,
        )  # fmt: skip
        receipt = await agent.put("k", "new")
        try:
            await receipt.durable(0.5)
        except cenote.NotDurableError:
            return
        demand(False, f"I1: durable, while SQL has {await sql.value(agent, 'k')}")


# --- rule 6: absent -----------------------------------------------------------------------------------------


@toothed(absence_asked_of_sql)
async def test_i12_an_evicted_key_exists(cenote_servers: TestServers) -> None:
    """Flow rule 6: `if_version=0` means "nowhere", not "not in KV"."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        await store.agent("i12").put("k", "first")
        assert await evict_all(store) >= 1
        try:
            await other.agent("i12").put("k", "second", if_version=0)
        except cenote.ConflictError:
            return
        demand(False, "I12: a key that was merely evicted was overwritten as if it did not exist")


@toothed(the_copy_below_a_write)
async def test_i12_an_update_of_an_evicted_key_loses_nothing_that_came_and_went(cenote_servers: TestServers) -> None:
    """Flow rule 6: between the update's read in SQL and its write another value came, was flushed and evicted."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as slow:
        await store.agent("i12").put("k", 100)
        assert await evict_all(store) >= 1

        async def come_and_go() -> None:
            await store.agent("i12").put("k", 200)
            assert await evict_all(store) >= 1

        with at(write_compared=come_and_go):
            entry = await slow.agent("i12").update("k", lambda value: value + 1)
        demand(entry.value == 201, f"I12: the update of 200 was lost: {entry.value}")


@toothed(the_copy_below_a_write)
async def test_s17_of_two_creators_one_succeeds(cenote_servers: TestServers) -> None:
    """Flow rule 6: one stands still between its look and its write; the other's value comes, is flushed and goes."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as slow:

        async def create() -> None:
            await store.agent("s17").put("k", "first", if_version=0)
            assert await evict_all(store) >= 1

        with at(write_compared=create):
            try:
                await slow.agent("s17").put("k", "second", if_version=0)
            except cenote.ConflictError:
                assert await store.agent("s17").get("k") == "first"
                return
        demand(False, "I12: two creators of one key, and both were acknowledged")


@toothed(the_epoch_of_a_version)
async def test_i12_a_version_of_an_older_epoch_never_matches(cenote_servers: TestServers) -> None:
    """Flow rule 6: the bucket was recreated, and another value has the sequence that the caller remembers."""
    async with cenote.open(**cenote_servers.fresh(**NOBODY_FLUSHES)) as store:
        agent, core = store.agent("i12"), store._core
        old = (await agent.put("k", "old")).version
        await core.link.api(f"STREAM.DELETE.{core.stream.name}")
        await core.probe_once()
        while core.last_sequence < old.revision - 1:
            await agent.put("filler", core.last_sequence)
            await core.probe_once()
        other = await agent.put("k", "other")
        assert other.version.revision == old.revision, "the sequence was not given out again"
        try:
            await agent.put("k", "mine", if_version=old)
        except cenote.ConflictError:
            return
        demand(False, "I12: a version of an older epoch matched another value")


# --- rules 7 and 16: again ----------------------------------------------------------------------------------


@toothed(no_buffer_over_a_reconnect)
async def test_i12_a_write_that_was_refused_never_lands_later(cenote_servers: TestServers) -> None:
    """Flow rule 7: no buffer outlives a connection; what could not be sent was not written, then or ever."""
    async with FaultProxy(nats_port(cenote_servers)) as proxy:
        place = cenote_servers.by_url(
            kv_port=proxy.port, **NOBODY_FLUSHES, kv__deadline_ms=1_500, kv__request_timeout_ms=1_500
        )
        async with cenote.open(**place) as store:
            agent, link = store.agent("i12"), store._core.link
            await agent.put("k", "old")
            proxy.cut()
            await reached(lambda: not link.connected, "the end of the connection")
            with pytest.raises(cenote.UnavailableError):
                await agent.put("k", "refused")
            generation = link.generation
            proxy.heal()
            await reached(lambda: link.generation > generation, "the next connection")
            await agent.put("the server has handled all that came before", 1)
            message = await in_kv(agent, "k")
            assert message is not None
            demand(message.payload == b'"old"', "I12: a write that was refused has landed after all")


@toothed(the_operation_at_the_leader)
async def test_i12_a_write_whose_answer_was_lost_undoes_nobody(cenote_servers: TestServers) -> None:
    """Flow rule 16: stored, its answer lost; before its writer is back another one has written."""
    async with FaultProxy(nats_port(cenote_servers)) as proxy:
        place = cenote_servers.by_url(kv_port=proxy.port, **NOBODY_FLUSHES)
        direct = {"kv": cenote_servers.by_url()["kv"]}
        async with cenote.open(**place) as store, cenote.open(**(place | direct)) as near:
            mine, theirs = store.agent("i12"), near.agent("i12")
            away = asyncio.Event()
            # From the moment of its loss until the other has written there is no way back.
            store._core.link.on_disconnect.extend((proxy.cut, away.set))
            proxy.lose_answer_to(b'"first"')
            write = asyncio.create_task(mine.put("k", "first"))
            await reached(lambda: proxy.lost and away.is_set(), "the loss of the answer")
            store._core.link.on_disconnect.remove(proxy.cut)
            assert await theirs.get("k") == "first"
            await theirs.put("k", "second")
            proxy.heal()
            outcome = (await asyncio.gather(write, return_exceptions=True))[0]
            now = await in_kv(theirs, "k")  # a copy in L1 may be a moment older
            assert now is not None
            demand(now.payload == b'"second"', f"I12: an acked write was undone by a repeat: {outcome!r}")
            assert isinstance(outcome, cenote.OutcomeUnknownError)


# --- rule 20: large values ----------------------------------------------------------------------------------


@toothed(the_blob_before_its_entry)
async def test_i1_a_writer_of_a_large_value_dies_at_either_side_of_its_entry(cenote_servers: TestServers) -> None:
    """Flow rule 20: before the entry nothing is visible, neither in KV nor in SQL; after it everything is."""
    large = random.Random(20).randbytes(1_000_000).hex()  # no compression makes it small

    class Died(BaseException):
        """The process ends here."""

    async def die() -> None:
        raise Died

    async with (
        cenote.open(**cenote_servers.fresh(**QUICK)) as store,
        another(store) as other,
        tables(cenote_servers, store) as sql,
    ):
        mine, theirs = store.agent("i1"), other.agent("i1")
        await theirs.put("k", "small", durability="sql")
        with at(write_ready=die), pytest.raises(Died):
            await mine.put("k", large)
        demand(await theirs.get("k") == "small", "I12: a value is visible before its entry")
        demand(await sql.value(mine, "k") == '"small"', "I12: a value is in SQL before its entry")
        with at(write_acked=die), pytest.raises(Died):
            await mine.put("k", large)
        other._core.cache.clear()  # what is asked is KV, not how soon the news reaches L1
        try:
            demand(await theirs.get("k") == large, "I1: an acknowledged large value is not read")
        except cenote.CenoteError as error:
            demand(False, f"I1: the entry of a large value came before its bytes: {error}")


# --- rule 21: expiry; and clocks ----------------------------------------------------------------------------


@toothed(an_expired_entry_as_a_tombstone)
async def test_i12_an_expired_entry_counts_as_a_tombstone(cenote_servers: TestServers) -> None:
    """Flow rule 21: KV still holds the entry; a creator must not be told that the key exists."""
    async with cenote.open(**cenote_servers.fresh(**NOBODY_FLUSHES)) as store:
        agent = store.agent("i12")
        receipt = await agent.put("k", "short", ttl=timedelta(seconds=1))
        ends = (await agent.entry("k")).expires_at
        assert ends is not None
        await reached(lambda: store._core.now_ms() > ends.timestamp() * 1000, "the expiry")
        assert await in_kv(agent, "k") is not None, "KV has dropped it by itself"
        try:
            created = await agent.put("k", "next", if_version=0)
        except cenote.ConflictError:
            demand(False, "I12: an expired key cannot be created")
        assert created.version > receipt.version
        demand(await agent.get("k") == "next", "I4: an expired key hides its successor")


@toothed(the_expiry_that_an_update_keeps)
async def test_i2_an_update_does_not_prolong_a_life(cenote_servers: TestServers) -> None:
    """Flow rule 21: `update` keeps the expiry."""
    async with cenote.open(**cenote_servers.fresh(**NOBODY_FLUSHES)) as store:
        agent = store.agent("i2")
        await agent.put("k", 1, ttl=timedelta(seconds=30))
        before = (await agent.entry("k")).expires_at
        after = (await agent.update("k", lambda value: value + 1)).expires_at
        assert before is not None
        demand(after == before, f"I2: an update moved the expiry from {before} to {after}")


@toothed(the_clock_of_the_server)
@pytest.mark.parametrize("ahead_s", [3_600, -3_600], ids=["an hour ahead", "an hour behind"])
async def test_s05_the_clocks_of_clients_decide_nothing(ahead_s: int, cenote_servers: TestServers) -> None:
    """Flow rules 19 and 21, failure class C: this machine's clock is wrong, and jumps under an open store."""
    async with cenote.open(**cenote_servers.fresh(**QUICK)) as store, another(store) as other:
        agent = store.agent("s05")
        long = await agent.put("long", 1, ttl=timedelta(minutes=20))
        await agent.put("short", 1, ttl=timedelta(seconds=1))
        with skewed(ahead_s):
            await agent.put("k", "first")
            await other.agent("s05").put("k", "second")
            demand(await agent.get("k") in ("first", "second"), "I5: an own write is not read")
            await agent.put("ttl", 1, ttl=timedelta(minutes=20))
            demand(await agent.get("long") == 1, "C: a wrong clock has ended a life")
            demand(await other.agent("s05").get("ttl") == 1, "C: a wrong clock gave no life")
            left = (await other.agent("s05").entry("ttl")).expires_at
            right = (await other.agent("s05").entry("long")).expires_at
            assert left is not None
            assert right is not None
            demand(abs(left - right) < timedelta(minutes=1), f"C: a wrong clock moved an expiry: {left} for {right}")

            async def over() -> bool:
                return await agent.get("short") is None

            await eventually(over, "C: a wrong clock prolongs a life")
            stats = await store.stats()
            demand(0 <= stats.oldest_dirty_ms < 60_000, f"I8: lag by a wrong clock: {stats.oldest_dirty_ms}")
            await store.flush(10)
            async with another(store) as third:
                demand(await third.agent("s05").get("k") == "second", "S05: a skewed clock dropped the later write")
            assert long.version < (await agent.entry("ttl")).version


# --- what the tests look with -------------------------------------------------------------------------------


def nats_port(servers: TestServers) -> int:
    return int(servers.info["nats"]["address"].rpartition(":")[2])


@contextmanager
def skewed(ahead_s: int) -> Iterator[None]:
    """This process's wall clock jumps, and jumps back at the end."""
    plain, plain_ns = time.time, time.time_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: plain() + ahead_s)
        patch.setattr(time, "time_ns", lambda: plain_ns() + ahead_s * 1_000_000_000)
        yield


@asynccontextmanager
async def under_way(*work: Coroutine[Any, Any, object]) -> AsyncIterator[list[asyncio.Task[object]]]:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Begun(Barrier):
    """A `flush()` that lets see from where on it waits."""

    start = 0

    async def _floor_reaches(self, start: int) -> None:
        self.start = start
        await super()._floor_reaches(start)


async def floor(core: Core) -> int:
    consumer = None if core.durable_name is None else await core.consumer(core.durable_name)
    return -1 if consumer is None else consumer.floor


@asynccontextmanager
async def pulled(core: Core, count: int) -> AsyncIterator[list[bytes]]:
    """Take messages from the flusher's durable, as a flusher does; where to acknowledge them."""
    acks: list[bytes] = []
    inbox = core.link.new_inbox()
    subscription = core.link.subscribe(inbox, lambda subject, reply, header, payload: acks.append(reply))
    assert core.durable_name is not None
    pull = f"$JS.API.CONSUMER.MSG.NEXT.{core.stream.name}.{core.durable_name}"
    core.link.send(pull, inbox.encode(), b'{"batch":%d}' % count)
    await reached(lambda: len(acks) == count, "the messages")
    yield acks
    subscription.close()


async def purge(store: Store, agent: AgentState, key: str) -> None:
    """Remove one key from the stream, as an operator might."""
    subject = agent._target(key).subject
    answer = await store._core.link.api(f"STREAM.PURGE.{store._core.stream.name}", {"filter": subject})
    assert answer["purged"] == 1
