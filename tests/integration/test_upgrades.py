"""Old and new processes side by side (I17, flow rule 22): the newer ones are real processes of a cenote that knows one
more format of entries or one more migration."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_run import urls

import cenote
from cenote import limits
from cenote.engine import batch
from cenote.errors import CodecError, SetupError
from cenote.kv.bucket import stream_info
from cenote.kv.message import header_value
from cenote.sql import migrate
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, demand, eventually, evict_all, in_kv, reached, tables, toothed

CHILD = str(Path(__file__).with_name("newer_cenote.py"))
KEYS = [f"k{number}" for number in range(5)]


def given(store: Store) -> dict[str, Any]:
    """How a child opens the same store."""
    kv, sql = store._core.config.kv, store._core.config.sql
    assert kv.url is not None
    assert sql.url is not None
    password = kv.password and kv.password.get_secret_value()
    return {
        "kv": kv.url.get_secret_value(), "sql": sql.url.get_secret_value(), "kv__user": kv.user,
        "kv__password": password, "namespace": store.config.namespace,
    }  # fmt: skip


async def newer(order: dict[str, Any], code: int = 0) -> dict[str, Any]:
    """What a process of the next version did."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, CHILD, json.dumps(order), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await child.communicate()
    assert child.returncode == code, err.decode()[-2000:]
    found: dict[str, Any] = json.loads(out)
    return found


@asynccontextmanager
async def flusher(store: Store, **changes: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """A flusher in a process of its own, of the next version, open by now."""
    order = json.dumps({"do": "flush", "settings": given(store), **changes})
    child = await asyncio.create_subprocess_exec(
        sys.executable, CHILD, order, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert json.loads(await child.stdout.readline()) == {"open": True}
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def values_of(child: asyncio.subprocess.Process) -> dict[str, Any]:
    """Let the flusher end; what it reads at the end."""
    assert child.stdin is not None
    child.stdin.write(b"\n")
    out, _ = await child.communicate()
    values: dict[str, Any] = json.loads(out)["values"]
    return values


def telling_newer_from_broken(patch: pytest.MonkeyPatch) -> None:
    """What cannot be read is poison, whatever its format."""

    class Nothing(Exception):
        pass

    patch.setattr(batch, "UnknownFormat", Nothing)


@pytest.mark.judge
@toothed(telling_newer_from_broken)
async def test_i17_an_old_flusher_leaves_the_writes_of_a_newer_cenote_alone(cenote_servers: TestServers) -> None:
    """They wait, are told of, hold nobody up, and are flushed by a process that knows them."""
    delay_s, limits.UNKNOWN_FORMAT_DELAY_S = limits.UNKNOWN_FORMAT_DELAY_S, 1  # type: ignore[misc]  # 30 s are long
    try:
        async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
            agent = store.agent("upgrade")
            await agent.put("old", 1, durability="sql")
            done = await newer({"do": "write", "settings": given(store), "keys": KEYS, "forced": True})
            assert done["acked"] == KEYS
            assert b"Cenote: 2;" in (await in_kv(agent, "k0") or pytest.fail("not there")).header

            async def met() -> bool:
                stats = await store.stats()
                return stats.unknown_formats >= len(KEYS) or stats.quarantined >= len(KEYS)

            await reached(met, "the flusher has seen them")
            demand(not await store._core.table.dead_letters(0, 10), "I17: a newer format was dead-lettered")
            for key in KEYS:
                demand(await sql.row(agent, key) is None, "I17: a newer format was mangled")
            with pytest.raises(CodecError, match="format 2; this cenote reads formats up to 1") as refused:
                await agent.get("k0")
            assert "pip install --upgrade cenote" in str(refused.value.hint)
            health = await store.health()
            assert health.verdict is cenote.Verdict.DEGRADED
            assert "newer cenote" in str(health)
            await agent.put("neighbour", 2, durability="sql")
            await store._machines.flusher.stop()  # type: ignore[union-attr]  # it flushes
            async with flusher(store) as child:

                async def flushed() -> bool:
                    return all([await sql.value(agent, key) == f'"newer {key}"' for key in KEYS])

                await eventually(flushed, "I17: the writes of a newer cenote never reach SQL")
                values = await values_of(child)
            demand(
                values == {"old": 1, "neighbour": 2} | {key: f"newer {key}" for key in KEYS}, "I1: something was lost"
            )
            assert not await store._core.table.dead_letters(0, 10)
    finally:
        limits.UNKNOWN_FORMAT_DELAY_S = delay_s  # type: ignore[misc]  # as it was


@pytest.mark.judge
async def test_i17_a_newer_format_is_written_only_after_the_last_old_flusher(cenote_servers: TestServers) -> None:
    """Before `cenote migrate` of the new version a new writer writes what the old ones read."""
    async with cenote.open(**cenote_servers.fresh()) as store:
        agent = store.agent("upgrade")
        order = {"do": "write", "settings": given(store), "keys": ["early"]}
        assert (await newer(order))["format"] == 1
        assert await agent.get("early") == "newer early", "an old reader reads a new writer"
        arguments = [*urls(cenote_servers), "--namespace", store.config.namespace]
        refused = await newer({"do": "migrate", "arguments": arguments}, code=2)
        assert "reads formats up to 1, not 2" in refused["error"]["message"]
        assert "cenote migrate" in refused["error"]["hint"]
        assert (await newer(order))["format"] == 1
        await store._machines.flusher.stop()  # type: ignore[union-attr]  # it flushes
        assert (await newer({"do": "migrate", "arguments": arguments}))["format"] == 2
        assert (await newer({"do": "migrate", "arguments": arguments}))["format"] is None
        assert (await newer(order | {"keys": ["late"]}))["format"] == 2
        late = await in_kv(agent, "late")
        assert late is not None
        assert (header_value(late.header, b"Cenote: ") or b"").startswith(b"2;")
        await agent.put("of an old writer", 1)  # who has not been stopped, and writes what it knows
        async with flusher(store) as child:
            assert await values_of(child) == {"early": "newer early", "late": "newer late", "of an old writer": 1}


@pytest.mark.parametrize("raw", [b'{"$later": [1]}', b"\x07later"], ids=["a tag", "a codec"])
async def test_i17_a_row_of_a_newer_cenote_is_refused_and_kept(raw: bytes, cenote_servers: TestServers) -> None:
    """Only SQL holds it any more. Reads say what to do; no copy in KV, no flush and no neighbour changes the row."""
    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("upgrade")
        await agent.put_many({"k": 1, "neighbour": 1})
        await evict_all(store)
        await sql.link.execute(
            f"UPDATE {sql.schema}.state SET value = NULL, raw = $2 WHERE agent_id = $1 AND key = 'k'", agent.id, raw
        )
        row = await sql.row(agent, "k")
        async with another(store) as other:
            for reader in (agent, other.agent("upgrade"), agent):
                with pytest.raises(CodecError) as refused:
                    await reader.get("k")
                assert "pip install --upgrade cenote" in str(refused.value.hint)
                assert refused.value.raw == raw
        await agent.put("neighbour", 2, durability="sql")
        await store.flush(10)
        demand(await sql.row(agent, "k") == row, "I17: a row of a newer format was mangled")
        await evict_all(store)
        demand(await sql.row(agent, "k") == row, "I17: a row of a newer format was mangled")
        assert await agent.get("neighbour") == 2
        await agent.put("k", "ours", durability="sql")  # whoever overwrites it may
        assert await agent.get("k") == "ours"


async def test_an_old_process_leaves_settings_of_a_newer_one_alone(cenote_servers: TestServers) -> None:
    """Neither the stream nor the durable is made anew, or put back to what this version would choose."""
    async with cenote.open(**cenote_servers.fresh(), flush__enabled=False) as store:
        core = store._core
        settings = (await core.stream.info()).config
        theirs = {"description": "of a newer cenote", "metadata": settings["metadata"] | {"cenote.later": "7"}}
        await core.link.api(f"STREAM.UPDATE.{core.stream.name}", settings | theirs)
        async with another(store, flush__enabled=True, sql__migrate="auto") as old:
            await old.agent("upgrade").put("k", 1, durability="sql")
            info = await stream_info(core.link, core.stream.name)
            durable = old._core.durable_name
            before = await core.link.api(f"CONSUMER.INFO.{core.stream.name}.{durable}")
            await core.link.api(
                f"CONSUMER.CREATE.{core.stream.name}.{durable}",
                {"stream_name": core.stream.name, "action": "update",
                 "config": before["config"] | {"description": "of a newer cenote"}},
            )  # fmt: skip
        assert info.config["description"] == "of a newer cenote"
        assert info.metadata["cenote.later"] == "7"
        assert info.created == (await core.stream.info()).created
        async with another(store, flush__enabled=True, sql__migrate="auto") as old:
            await old.agent("upgrade").put("k", 2, durability="sql")
            after = await core.link.api(f"CONSUMER.INFO.{core.stream.name}.{durable}")
        assert after["config"]["description"] == "of a newer cenote"
        assert after["created"] == before["created"]


@pytest.mark.judge
async def test_a_schema_of_the_next_version_under_a_running_process(
    cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What runs and what opens later goes on while the schema allows it. After that it writes nothing to SQL any more,
    and what opens is refused typed."""
    ours = migrate.known()
    head = ours[-1].number

    def following(number: int, min_reader: int) -> migrate.Migration:
        text = f"ALTER TABLE {{agents}}.state ADD COLUMN later_{number} integer NOT NULL DEFAULT 0"
        return migrate.Migration(number, "later", "pre", min_reader, text)

    async with cenote.open(**cenote_servers.fresh()) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("upgrade")
        receipts = []

        async def write_on() -> None:
            for number in range(200):
                receipts.append(await agent.put(f"k{number}", number))
                await asyncio.sleep(0.002)

        async def upgraded(*added: migrate.Migration) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(migrate, "known", lambda: (*ours, *added))
                assert await migrate.migrate(store._core.db, "auto") == [added[-1]]

        writing = asyncio.create_task(write_on())
        await reached(lambda: len(receipts) > 20, "writes under way")
        friendly, strict = following(head + 1, head), following(head + 2, head + 2)
        await upgraded(friendly)
        await writing
        await store.flush(10)
        assert all([await sql.value(agent, f"k{number}") == str(number) for number in range(200)])
        async with another(store, flush__enabled=True, sql__migrate="check") as old:
            await old.agent("upgrade").put("by an old one", 1, durability="sql")
        await upgraded(friendly, strict)
        rows = await sql.link.fetchval(f"SELECT count(*) FROM {sql.schema}.state")
        last = (await store._core.stream.info()).last_seq
        for policy in ("auto", "check"):
            with pytest.raises(SetupError, match=f"{head + 2:04}.*{head:04}") as refused:
                async with another(store, flush__enabled=True, sql__migrate=policy):
                    pass
            assert "pip install --upgrade cenote" in str(refused.value.hint)
        assert await sql.link.fetchval(f"SELECT count(*) FROM {sql.schema}.state") == rows
        assert (await store._core.stream.info()).last_seq == last
        await agent.put("the one that runs", 1)  # KV takes it; a process that knows the schema will flush it
        await reached(lambda: "too new" in caplog.text, "its flusher says why it flushes no more")
        assert await sql.link.fetchval(f"SELECT count(*) FROM {sql.schema}.state") == rows


@pytest.mark.judge
async def test_i3_an_old_flusher_that_wakes_up_after_the_upgrade(cenote_servers: TestServers) -> None:
    """It was frozen with a batch in hand, a newer one took over, and it brings the batch when everything has moved
    on."""
    async with cenote.open(**cenote_servers.fresh(flush__enabled=False)) as store, tables(cenote_servers, store) as sql:
        agent = store.agent("upgrade")
        async with flusher(store, do="freeze", old=True) as old:
            await sql.audit()
            await agent.put("k", "old")
            assert old.stdout is not None
            assert json.loads(await old.stdout.readline()) == {"frozen": True}
            async with flusher(store) as new:
                for number in range(20):
                    await agent.put("k", number)

                async def taken_over() -> bool:
                    return await sql.value(agent, "k") == "19"

                await reached(taken_over, "the newer flusher has flushed the newest")
                old.send_signal(signal.SIGCONT)
                assert json.loads(await old.stdout.readline()) == {"committed": True}, "it never brought its batch"
                await agent.put("end", 1)
                assert await values_of(new) == {"k": 19, "end": 1}
        assert await sql.demand_monotonic() >= 2
