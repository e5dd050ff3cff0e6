"""Counters of a swarm: added up by JetStream, counted once, flushed, and never less than what either side holds (I1,
I3, I12; flow rules 4, 5, 8, 16)."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import pytest
from cli_run import Cli
from kv_past import past

import cenote
from cenote.engine import counter_mender, counters
from cenote.engine.counter_flush import CounterFlush
from cenote.engine.counter_life import COUNTED_KEY
from cenote.engine.epoch import STORE_KEY
from cenote.errors import OutcomeUnknownError, RejectedError, SetupError, UnavailableError
from cenote.kv.counters import CounterStream
from cenote.kv.errors import AnswerLost
from cenote.store import Store
from cenote.testing import FaultProxy, TestServers
from witness import Tables, another, demand, reached, tables, toothed

HOSTILE = ["a.b", ".", "..", "*", ">", "a b", "$KV", "=lease", "\x00", "\ud800", "é" * 100, "x" * 512, "a:b"]


async def in_sql(sql: Tables) -> dict[str, int]:
    """What the table says."""
    rows = await sql.link.fetch(f"SELECT name, value FROM {sql.schema}.counters")
    return {row["name"]: int(row["value"]) for row in rows}


async def listed(store: Store, prefix: str = "") -> dict[str, int]:
    return {name: total async for name, total in store.counters(prefix)}


def stream_of(store: Store) -> CounterStream:
    return store._machines.counters.stream


# --- adding and reading -----------------------------------------------------------------------------------------


async def test_totals_reach_every_process_and_sql(cenote_servers: TestServers) -> None:
    async with (
        cenote.open(**cenote_servers.fresh()) as store,
        another(store) as other,
        tables(cenote_servers, store) as sql,
    ):
        assert await listed(store) == {}
        assert await store.counter("hits").value() == 0
        assert await store.counter("hits").add() == 1
        assert await other.counter("hits").add(9) == 10
        assert await store.counter("hits").add(-30) == -20
        assert await other.counter("hits").value() == -20
        assert await store.counter("hits").add(0) == -20
        assert await store.counter("big").add(2**63 - 1) == 2**63 - 1
        assert await store.counter("big").add(2**63 - 1) == 2**64 - 2
        await other.flush(10)
        assert await in_sql(sql) == {"hits": -20, "big": 2**64 - 2}
        assert await listed(other) == {"hits": -20, "big": 2**64 - 2}


async def test_every_name_that_a_key_may_have_can_be_counted(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        for number, name in enumerate(HOSTILE, 1):
            assert await store.counter(name).add(number) == number
        wanted = {name: number for number, name in enumerate(HOSTILE, 1)}
        assert await listed(store) == wanted
        for prefix in ("a", "a.", ".", "x" * 511, "é", "nobody"):
            assert await listed(store, prefix) == {n: v for n, v in wanted.items() if n.startswith(prefix)}
        await store.flush(10)
        assert len(await in_sql(sql)) == len(HOSTILE)


@pytest.mark.parametrize("name", ["", "x" * 513, "é" * 512, 7])
def test_a_name_that_is_none_is_refused_at_once(name: Any) -> None:
    with pytest.raises(RejectedError):
        counters.SwarmCounter(None, name)  # type: ignore[arg-type]  # never asked


async def test_an_amount_that_is_none_is_refused(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        for amount in (1.5, "1", None, True, 2**63, -(2**63)):
            with pytest.raises(RejectedError):
                await store.counter("hits").add(amount)  # type: ignore[arg-type]  # the point of it
        assert await listed(store) == {}


async def test_nobody_gets_the_same_total_twice(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as other:
        both = [store.counter("n"), other.counter("n")]
        totals = await asyncio.gather(*(both[number % 2].add() for number in range(400)))
        assert sorted(totals) == list(range(1, 401))


async def test_the_blocking_face_counts(cenote_servers: TestServers) -> None:
    def work() -> tuple[int, int, dict[str, int]]:
        with cenote.blocking.open(**cenote_servers.fresh()) as store:
            counter = store.counter("hits")
            return counter.add(5), counter.value(), dict(store.counters("h"))

    assert await asyncio.to_thread(work) == (5, 5, {"hits": 5})


def test_the_command_lists_them(cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]) -> None:
    settings = cenote_servers.fresh()
    cli = Cli(capsys, ["--data-dir", str(settings["data_dir"]), "--namespace", settings["namespace"]])
    assert cli("counters").code == 1
    with cenote.blocking.open(**settings) as store:
        store.counter("tasks.done").add(12)
        store.counter("tasks.\x1b[31m").add(-3)
    assert cli("counters", "--json").json == {"tasks.done": 12, "tasks.\x1b[31m": -3}
    shown = cli("counters", "tasks.d")
    assert (shown.code, shown.out.split()) == (0, ["COUNTER", "TOTAL", "tasks.done", "12"])
    assert "\x1b" not in cli("counters").out


async def test_totals_reach_sql_by_themselves_and_before_the_last_one_leaves(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh()
    async with cenote.open(**settings) as store, tables(cenote_servers, store) as sql:
        await store.counter("hits").add(3)
        await reached(lambda: _equals(sql, {"hits": 3}), "the flusher's look")
    async with cenote.open(**settings, flush__enabled=False) as store, tables(cenote_servers, store) as sql:
        await store.counter("hits").add(4)
        await store.aclose()
        assert await in_sql(sql) == {"hits": 7}


async def _equals(sql: Tables, wanted: dict[str, int]) -> bool:
    return await in_sql(sql) == wanted


# --- lost answers -----------------------------------------------------------------------------------------------


def questions_after_a_lost_answer(patch: pytest.MonkeyPatch) -> None:
    async def repeat(*_: object) -> None:
        raise counters._NotCounted

    patch.setattr(counters._Doubt, "settle", repeat)


def blind_trust_in_being_sent(patch: pytest.MonkeyPatch) -> None:
    async def believe(doubt: Any, *_: object) -> Any:
        return counters.Added(1, 0)

    patch.setattr(counters._Doubt, "settle", believe)


@toothed(questions_after_a_lost_answer)
async def test_i12_an_increment_whose_answer_was_lost_counts_once(cenote_servers: TestServers) -> None:
    """The server counts, and the connection breaks in place of the answer; others add meanwhile."""
    direct = cenote_servers.by_url()["kv"]
    async with FaultProxy(urlsplit(direct).port or 0) as proxy:
        settings = cenote_servers.by_url(kv_port=proxy.port)
        async with cenote.open(**settings) as store, another(store, kv=direct) as other:
            await store.counter("n").add()
            await other.counter("n").add()
            for number in range(5):
                proxy.lose_answer_to(b"Nats-Incr: +1000\r\n")
                totals = await asyncio.gather(store.counter("n").add(1000), _soon(other.counter("n").add))
                assert proxy.lost == number + 1, "the fault did not hit"
                demand(totals[0] >= 1000 * (number + 1), "I5: a total without its own increment")
            demand(await other.counter("n").value() == 5007, "I12: an increment was counted twice, or never")


async def _soon(add: Callable[[], Awaitable[int]]) -> int:
    await asyncio.sleep(0.02)
    return await add()


@toothed(blind_trust_in_being_sent)
async def test_i1_an_increment_that_never_arrived_is_added_after_all(cenote_servers: TestServers) -> None:
    """The network swallows it: the question whether it was counted shows that it was not."""
    async with cenote.open(**cenote_servers.fresh()) as store:
        await store.counter("n").add()
        link, swallowed = store._core.link, 0
        request = link.request

        def swallow(subject: Any, header: bytes, payload: bytes, timeout_ms: int) -> Any:
            nonlocal swallowed
            if header.startswith(b"Nats-Incr: +5\r\n") and not swallowed:
                swallowed += 1
                answer = asyncio.get_running_loop().create_future()
                answer.set_exception(AnswerLost("swallowed"))
                return answer
            return request(subject, header, payload, timeout_ms)

        link.request = swallow  # type: ignore[method-assign]  # the network between us and the server
        total = await store.counter("n").add(5)
        assert swallowed == 1
        demand(await store.counter("n").value() == 6, "I1: an acknowledged increment is missing")
        assert total == 6


async def test_after_a_restart_of_the_server_nobody_can_tell(cenote_servers: TestServers, tmp_path: Path) -> None:
    """A server that starts has forgotten the ids of superseded increments: the outcome is unknown, and nothing is
    repeated. The counter's last one still tells."""
    with past(tmp_path, cenote_servers) as was:
        for overtaken in (True, False):
            async with FaultProxy(was.server.port) as proxy:
                kv = was.server.url.replace(str(was.server.port), str(proxy.port))
                async with was.open() as other, was.open(kv=kv, flush__enabled=False) as store:
                    before = await store.counter("n").add()
                    await other.counter("n").add()
                    proxy.lose_answer_to(b"Nats-Incr: +10\r\n")
                    waiting = asyncio.create_task(store.counter("n").add(10))
                    await reached(lambda: proxy.lost, "the lost answer")
                    proxy.cut()
                    if overtaken:
                        await other.counter("n").add()
                    await asyncio.to_thread(was.server.kill)
                    await asyncio.to_thread(was.server.start)
                    proxy.heal()
                    if overtaken:
                        with pytest.raises(OutcomeUnknownError):
                            await waiting
                    else:
                        assert await waiting == before + 11
                    assert await other.counter("n").value() == before + 11 + overtaken


# --- time goes backwards ----------------------------------------------------------------------------------------


def comparing_after_a_start(patch: pytest.MonkeyPatch) -> None:
    """Every start of the server is announced at once, and nothing is added back."""

    async def none(*_: object) -> list[object]:
        return []

    patch.setattr(counter_mender._Mending, "_lost", none)


def waiting_for_the_comparison(patch: pytest.MonkeyPatch) -> None:
    real = counters.look

    async def at_once(*given: Any) -> Any:
        life = await real(*given)
        return life and life._replace(settled=life.epoch > 0)

    patch.setattr(counters, "look", at_once)


@toothed(comparing_after_a_start, waiting_for_the_comparison)
async def test_i1_a_rewound_stream_gets_back_what_sql_holds(cenote_servers: TestServers, tmp_path: Path) -> None:
    """The server loses its tail, which SQL has; others count on in the very moment it is back, so the sequences of the
    tail are given again."""
    with past(tmp_path, cenote_servers) as was:
        async with was.open() as store, was.open(flush__enabled=False) as other, tables(cenote_servers, store) as sql:
            names = [f"n{number}" for number in range(20)]
            for name in names:
                await store.counter(name).add(10)
            was.remember()
            for name in names[5:]:
                await store.counter(name).add(7)
            await store.counter("late").add(5)
            await store.flush(10)
            await was.rewind(store, other)
            await asyncio.gather(*(other.counter(name).add() for name in names for _ in range(3)))
            wanted = dict.fromkeys(names[:5], 13) | dict.fromkeys(names[5:], 20) | {"late": 5}
            demand(await listed(other) == wanted, "I1: increments were lost, or counted twice")
            await other.flush(10)
            demand(await in_sql(sql) == wanted, "I3: SQL went back, or did not follow")


@pytest.mark.judge
@pytest.mark.parametrize("died", ["before the announcement", "before the commit"])
async def test_a_mender_that_died_half_way_adds_nothing_twice(
    cenote_servers: TestServers, tmp_path: Path, died: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with past(tmp_path, cenote_servers) as was:
        async with was.open() as store, tables(cenote_servers, store) as sql:
            await store.counter("a").add(10)
            was.remember()
            await store.counter("a").add(5)
            await store.counter("b").add(3)
            await store.flush(10)
            deaths = 0
            place, name = {
                "before the announcement": (counter_mender, "announcement"),
                "before the commit": (counter_mender.CounterTable, "settle"),
            }[died]
            real = getattr(place, name)

            def die(*args: Any, **options: Any) -> Any:
                nonlocal deaths
                deaths += 1
                if deaths < 3:
                    raise UnavailableError("died here")
                return real(*args, **options)

            monkeypatch.setattr(place, name, die)
            await was.rewind(store)
            assert await store.counter("a").add(100) == 115
            await reached(lambda: deaths >= 3, "the third mender")
            assert await listed(store) == {"a": 115, "b": 3}
            await store.flush(10)
            assert await in_sql(sql) == {"a": 115, "b": 3}


async def test_a_deleted_stream_comes_back_with_every_total(cenote_servers: TestServers) -> None:
    """Under the feet of processes that count: what they send finds no stream, never the new one before it is mended."""
    async with (
        cenote.open(**cenote_servers.fresh()) as store,
        another(store) as other,
        tables(cenote_servers, store) as sql,
    ):
        for name in ("a", "b", "c"):
            await store.counter(name).add(100)
        await other.counter("a").add(0)
        for round_ in range(1, 3):
            await store.flush(10)
            await store._core.link.api(f"STREAM.DELETE.{stream_of(store).name}")
            totals = await asyncio.gather(*(one.counter("a").add() for one in (store, other) for _ in range(10)))
            assert sorted(totals) == list(range(100 + 20 * round_ - 19, 100 + 20 * round_ + 1))
            assert await listed(other) == {"a": 100 + 20 * round_, "b": 100, "c": 100}
        await store.flush(10)
        await store._core.link.api(f"STREAM.DELETE.{stream_of(store).name}")
        assert await other.counter("b").value() == 100
        await store.flush(10)
        assert await in_sql(sql) == {"a": 140, "b": 100, "c": 100}


@pytest.mark.judge
async def test_a_stream_that_nobody_uses_any_more_is_brought_back_by_the_flusher(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        await store.counter("a").add(4)
        await store.flush(10)
        await store._core.link.api(f"STREAM.DELETE.{stream_of(store).name}")
        await reached(lambda: _total(store, "a", 4), "the flusher's look")


async def _total(store: Store, name: str, wanted: int) -> bool:
    life = await counters.look(store._core, stream_of(store))
    held = life and await stream_of(store).leader_get(life.prefix + name)
    return held is not None and b'"%d"' % wanted in held.payload


@pytest.mark.judge
async def test_an_older_copy_from_before_an_epoch_is_brought_up(cenote_servers: TestServers, tmp_path: Path) -> None:
    with past(tmp_path, cenote_servers) as was:
        async with was.open() as store:
            await store.counter("a").add(10)
            await store.flush(10)
            was.remember()
            await store._core.link.api(f"STREAM.DELETE.{stream_of(store).name}")
            assert await store.counter("a").add(5) == 15
            assert await store.counter("b").add(1) == 1
            await store.flush(10)
            await was.rewind(store)
            assert await store.counter("a").add(100) == 115
            assert await listed(store) == {"a": 115, "b": 1}


def taking_the_database_for_the_newer_side(patch: pytest.MonkeyPatch) -> None:
    """Long after the server has forgotten which ids it has seen."""
    real = CounterStream.increment

    async def anew(stream: CounterStream, subject: str, amount: int, operation: str, *more: Any, **others: Any) -> Any:
        return await real(stream, subject, amount, operation + token_hex(4), *more, **others)

    patch.setattr(counter_mender._Mending, "_behind", lambda *_: True)
    patch.setattr(CounterStream, "increment", anew)


@toothed(taking_the_database_for_the_newer_side)
async def test_i1_a_database_from_before_an_epoch_is_written_to_again(cenote_servers: TestServers) -> None:
    """A dump is restored: nothing is added to the stream, and every total reaches SQL once more."""
    await _restored(cenote_servers, lose_the_stream=True)


async def test_an_older_database_is_written_to_again(cenote_servers: TestServers) -> None:
    await _restored(cenote_servers, lose_the_stream=False)


async def _restored(servers: TestServers, *, lose_the_stream: bool) -> None:
    settings = servers.fresh()
    async with cenote.open(**settings) as store, tables(servers, store) as sql:
        await store.counter("a").add(10)
        await store.counter("b").add(1)
        await store.flush(10)
        await sql.link.execute(
            f"CREATE TABLE {sql.schema}.old_1 AS TABLE {sql.schema}.counters;"
            f"CREATE TABLE {sql.schema}.old_2 AS TABLE {sql.schema}.counter_stream"
        )
        if lose_the_stream:
            await store._core.link.api(f"STREAM.DELETE.{stream_of(store).name}")
        await store.counter("a").add(5)
        await store.counter("c").add(2)
        await store.flush(10)
    async with cenote.open(**settings, flush__enabled=False) as store, tables(servers, store) as sql:
        await sql.link.execute(
            f"BEGIN; TRUNCATE {sql.schema}.counters, {sql.schema}.counter_stream;"
            f"INSERT INTO {sql.schema}.counters TABLE {sql.schema}.old_1;"
            f"INSERT INTO {sql.schema}.counter_stream TABLE {sql.schema}.old_2; COMMIT"
        )
        wanted = {"a": 15, "b": 1, "c": 2}
        await store._machines.counter_flush.everything(10)
        demand(await in_sql(sql) == wanted, "I1: SQL was not written to again")
        demand(await listed(store) == wanted, "I3: the stream was changed by an older database")


@pytest.mark.judge
async def test_a_flusher_frozen_since_before_a_rewind_writes_nothing(
    cenote_servers: TestServers, tmp_path: Path
) -> None:
    """It has read a tail that the server then loses, and commits after the comparison."""
    with past(tmp_path, cenote_servers) as was:
        async with was.open() as store, was.open(flush__enabled=False) as other, tables(cenote_servers, store) as sql:
            await store.counter("a").add(10)
            await store.flush(10)
            frozen = CounterFlush(other._core)
            await frozen.everything(10)
            head, life = frozen._head, await counters.look(other._core, stream_of(other))
            assert head is not None
            assert life is not None
            was.remember()
            flusher = store._machines.flusher
            assert flusher is not None
            await flusher.stop()
            await store.counter("a").add(5)
            rows, upto = await frozen._new(life, head.flushed)
            assert [row.value for row in rows.values()] == [15]
            await was.rewind(store, other)
            assert await store.counter("a").add(1) == 11
            assert not await frozen._table.flush(list(rows.values()), head, upto)
            flusher.start()
            await store.flush(10)
            assert await in_sql(sql) == {"a": 11}


# --- whose it is ------------------------------------------------------------------------------------------------


async def test_rule_8_a_foreign_counter_stream_is_refused(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        await store.counter("a").add()
        stream = stream_of(store)
        await stream.update_metadata({STORE_KEY: "0b3c7a34-1111-4222-8333-444455556666", COUNTED_KEY: ""})
        async with another(store) as other:
            for work in (other.counter("a").add(), other.counter("a").value(), other.flush(5)):
                with pytest.raises(SetupError, match="belongs to store 0b3c7a34"):
                    await work
        message = await stream.leader_get((await stream.info()).config["subjects"][0].replace(">", "a"))
        assert message is not None
        assert b'"1"' in message.payload


async def test_a_stream_that_would_lose_totals_is_refused(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        await store.counter("a").add()
        name, link = stream_of(store).name, store._core.link
        config = (await link.api(f"STREAM.INFO.{name}"))["config"]
        await link.api(f"STREAM.UPDATE.{name}", config | {"max_age": 3600 * 10**9})
        async with another(store) as other:
            with pytest.raises(SetupError, match="max_age"):
                await other.counter("a").add()


async def test_an_old_server_is_told_by_its_version(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        store._core.link.server_version = (2, 11, 4)
        with pytest.raises(SetupError, match=r"2\.12 or newer; this one is 2\.11\.4") as told:
            await store.counter("a").add()
        assert not told.value.retryable


@pytest.mark.judge
async def test_without_postgresql_a_first_counter_is_refused_before_it_counts(cenote_servers: TestServers) -> None:
    """Nobody has compared the stream with SQL yet; afterwards PostgreSQL may stay away."""
    async with FaultProxy(urlsplit(cenote_servers.sql_dsn).port or 0) as proxy:
        settings = cenote_servers.by_url(
            sql_port=proxy.port, kv__deadline_ms=1500, kv__request_timeout_ms=1000, flush__drain_ms=0
        )
        async with cenote.open(**settings) as store:
            proxy.cut()
            with pytest.raises(UnavailableError):
                await store.counter("a").add()
            proxy.heal()
            assert await store.counter("a").add() == 1
            proxy.cut()
            assert await store.counter("a").add() == 2
            proxy.heal()
