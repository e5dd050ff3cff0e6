"""Sessions: their lives by their own ttl, compare-and-set, and what is told of one that is over."""

import asyncio
import base64
from dataclasses import replace
from datetime import timedelta

import pytest

import cenote
from cenote.naming import SESSION_DATA
from cenote.testing import TestServers
from witness import another, reached

SHORT = timedelta(seconds=1)


async def test_a_session_lives_for_its_own_time_and_is_then_said_to_have_expired(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(session__ttl_s=1)) as store:
        ordinary = await store.sessions.create({"user": "ada"})
        longer = await store.sessions.create({"user": "grace"}, ttl=timedelta(hours=9))
        assert (await store.sessions.find(ordinary.id)).data == {"user": "ada"}
        assert len({ordinary.id, longer.id}) == 2

        async def over() -> bool:
            return isinstance((await cenote.attempt(store.sessions.find(ordinary.id))).error, cenote.ExpiredError)

        await reached(over, "the end of a session")
        for late in (store.sessions.touch(ordinary.id), store.sessions.update(ordinary)):
            with pytest.raises(cenote.ExpiredError):
                await late
        assert (await store.sessions.find(longer.id)).data == {"user": "grace"}
        assert [one.id for one in await store.sessions.list()] == [longer.id]
        again = await store.sessions.create("anew", session_id=ordinary.id)
        assert (await store.sessions.find(ordinary.id)).version == again.version
        with pytest.raises(cenote.NotFoundError) as none:
            await store.sessions.find("nobody's")
        assert not isinstance(none.value, cenote.ExpiredError)


async def test_the_server_keeps_a_session_five_minutes_beyond_its_end(cenote_servers: TestServers) -> None:
    """And takes it away then: nothing of it stays, however long the bucket lives."""
    async with cenote.open(**cenote_servers.fresh()) as store:
        core = store._machines.core
        await store.sessions.create(1, session_id="s", ttl=timedelta(seconds=90))
        body = {"last_by_subj": f"{core.names.subject(SESSION_DATA)}s"}
        answer = await core.link.api(f"STREAM.MSG.GET.{core.names.stream(SESSION_DATA)}", body)
        headers = base64.b64decode(answer["message"]["hdrs"]).decode()
        ttl_s = int(headers.partition("Nats-TTL: ")[2].partition("s\r\n")[0])
        assert 90 + 300 <= ttl_s <= 90 + 600
        info = await core.link.api(f"STREAM.INFO.{core.names.stream(SESSION_DATA)}")
        assert info["config"]["max_age"] == 0


async def test_a_bucket_of_an_older_version_lets_sessions_live(cenote_servers: TestServers) -> None:
    """It ended every entry after `session.ttl_s`, whatever its own time was."""
    settings = cenote_servers.fresh()
    async with cenote.open(**settings) as store:
        link, name = store._machines.core.link, store._machines.core.names.stream(SESSION_DATA)
        config = (await link.api(f"STREAM.INFO.{name}"))["config"]
        await link.api(f"STREAM.UPDATE.{name}", config | {"max_age": 1_000_000_000})
        await store.sessions.create("kept", session_id="s", ttl=timedelta(hours=1))
        assert (await link.api(f"STREAM.INFO.{name}"))["config"]["max_age"] == 0
        await asyncio.sleep(1.5)
        assert (await store.sessions.find("s")).data == "kept"


async def test_an_update_of_what_has_changed_is_refused_and_a_touch_is_not(cenote_servers: TestServers) -> None:
    settings = cenote_servers.fresh()
    async with cenote.open(**settings) as store, another(store) as other:
        first = await store.sessions.create({"n": 1}, session_id="s. 1\0")
        theirs = await other.sessions.update(replace(await other.sessions.find(first.id), data={"n": 2}))
        with pytest.raises(cenote.ConflictError):
            await store.sessions.update(replace(first, data={"n": 3}))
        touched = await store.sessions.touch(first.id, ttl=timedelta(days=2))
        assert touched.data == {"n": 2}
        assert touched.version != theirs.version
        assert touched.expires_at is not None
        assert theirs.expires_at is not None
        assert touched.expires_at - theirs.expires_at > timedelta(hours=46)
        with pytest.raises(cenote.AlreadyExistsError):
            await other.sessions.create(0, session_id=first.id)
        await other.sessions.delete(first.id)
        await other.sessions.delete(first.id)
        with pytest.raises(cenote.NotFoundError):
            await store.sessions.update(touched)


async def test_of_many_who_change_one_session_nobody_is_lost(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store, another(store) as other:
        await store.sessions.create(0, session_id="s")

        async def add(sessions: object) -> int:
            refused = 0
            for _ in range(20):
                while True:
                    found = await sessions.find("s")  # type: ignore[attr-defined]  # either store's
                    try:
                        await sessions.update(replace(found, data=found.data + 1))  # type: ignore[attr-defined]  # as above
                        break
                    except cenote.ConflictError:
                        refused += 1
            return refused

        refusals = await asyncio.gather(*(add(one.sessions) for one in (store, other, store, other)))
        assert (await store.sessions.find("s")).data == 80
        assert sum(refusals) > 0


async def test_pages_and_bad_input(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        for number in range(7):
            await store.sessions.create(number, session_id=f"s{number}")
        first = await store.sessions.list(limit=3)
        second = await store.sessions.list(limit=3, cursor=first.next)
        last = await store.sessions.list(limit=3, cursor=second.next)
        assert [one.data for page in (first, second, last) for one in page] == list(range(7))
        assert last.next is None
        with pytest.raises(cenote.NotFoundError):
            await store.sessions.list(cursor="forged")
        for bad in (store.sessions.create(session_id=""), store.sessions.create(session_id="x" * 513)):
            with pytest.raises(cenote.RejectedError):
                await bad
        with pytest.raises(cenote.RejectedError, match="data"):
            await store.sessions.create("ä".join(str(n) for n in range(400_000)))
        with pytest.raises(cenote.RejectedError, match="ttl"):
            await store.sessions.create(1, ttl=timedelta(0))
