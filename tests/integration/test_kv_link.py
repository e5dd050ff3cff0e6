"""The link on a real server: every request ends, nothing outlives its connection, reconnects are counted."""

import asyncio
import logging
import time
from pathlib import Path

import pytest
from kv_server import KvServer, config, link, running, server, until

from cenote import limits
from cenote.errors import RejectedError, SetupError, UnavailableError
from cenote.kv.errors import AnswerLost, NoResponders, NotSent
from cenote.kv.link import Link
from cenote.kv.mux import Reply

__all__ = ["link", "server"]  # fixtures


def echo(link: Link, subject: str = "echo") -> None:
    """Answer requests on `subject` over the link itself."""
    link.subscribe(subject, lambda _subject, reply, _header, payload: link.send(reply, b"", payload))


async def test_request_and_answer(link: Link) -> None:
    echo(link)
    replies = await asyncio.gather(*(link.request("echo", b"", b"%d" % n, 5000) for n in range(500)))
    assert [int(reply.payload) for reply in replies] == list(range(500))
    assert {reply.generation for reply in replies} == {link.generation} == {1}


async def test_headers_and_large_payloads_arrive_whole(link: Link) -> None:
    got: list[tuple[bytes, ...]] = []
    link.subscribe("in.*", lambda *frame: got.append(frame))
    body = bytes(range(256)) * 3000
    link.send("in.a", b"re.ply", body, b"Cenote: 1;j;;;\r\n")
    link.send(b"in.b", b"", b"")
    await until(lambda: len(got) == 2)
    assert got[0] == (b"in.a", b"re.ply", b"NATS/1.0\r\nCenote: 1;j;;;\r\n\r\n", body)
    assert got[1] == (b"in.b", b"", b"", b"")


@pytest.mark.alone
async def test_nobody_there_is_a_proof_and_silence_is_not(link: Link) -> None:
    with pytest.raises(NoResponders):
        await link.request("nobody", b"", b"", 5000)
    link.subscribe("silent", lambda *_: None)
    start = time.monotonic()
    with pytest.raises(AnswerLost):
        await link.request("silent", b"", b"", 300)
    assert 0.25 < time.monotonic() - start < 1


async def test_a_cancelled_request_is_forgotten(link: Link) -> None:
    echo(link)
    future = link.request("echo", b"", b"x", 5000)
    future.cancel()
    assert (await link.request("echo", b"", b"y", 5000)).payload == b"y"


async def test_what_would_end_the_connection_is_refused_here(link: Link) -> None:
    too_long = "s" * (limits.REQUEST_SUBJECT_BYTES_MAX + 1)
    for subject in (too_long, "a b", "a\r\nPUB b 0\r\n"):
        with pytest.raises(RejectedError):
            link.request(subject, b"", b"", 1000)
    with pytest.raises(RejectedError):
        link.request("a", b"", b"x" * (link.max_payload + 1), 1000)
    longest = "s" * limits.REQUEST_SUBJECT_BYTES_MAX
    echo(link, longest)
    assert (await link.request(longest, b"", b"ok", 5000)).payload == b"ok"
    assert link.generation == 1


async def test_the_servers_time_is_bounded_from_below(link: Link) -> None:
    with pytest.raises(UnavailableError):
        link.server_now_ms()
    await link.api("STREAM.CREATE.T", {"name": "T", "subjects": ["t"]})
    await link.api("STREAM.INFO.T")
    assert 0 <= time.time() * 1000 - link.server_now_ms() < 1000  # one machine, one clock


async def test_wrong_credentials_and_absent_servers(server: KvServer) -> None:
    for wrong in ({"password": "wrong"}, {"user": None, "password": None}):
        with pytest.raises(SetupError, match="credentials"):
            await Link(config(server, **wrong), name="test").connect()
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await Link(config(server, url="nats://127.0.0.1:1"), name="test").connect()
    with pytest.raises(SetupError, match=r"kv\.url"):
        await Link(config(server, url="http://127.0.0.1"), name="test").connect()
    with pytest.raises(SetupError, match="TLS"):
        await Link(config(server, url=f"tls://127.0.0.1:{server.port}"), name="test").connect()


async def test_the_first_server_of_a_list_that_answers_is_taken(server: KvServer) -> None:
    url = f"nats://cenote:{server.password}@127.0.0.1:1,127.0.0.1:{server.port}"
    link = Link(config(server, url=url, user=None, password=None), name="test")
    await link.connect()
    assert link.connected
    assert link.server_version >= (2, 11, 0)
    await link.close()
    with pytest.raises(NotSent):
        link.send("a", b"", b"")


async def test_an_inbox_that_is_not_permitted_is_said_at_once(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        pass
    text = (tmp_path / "nats.conf").read_text()
    (tmp_path / "nats.conf").write_text(
        text.replace(
            f"password: {server.password}",
            f'password: {server.password}, permissions: {{ publish: ">", subscribe: "_INBOX_me.>" }}',
        )
    )
    server.start()
    try:
        with pytest.raises(SetupError, match="inbox"):
            await Link(config(server), name="test").connect()
        link = Link(config(server), name="test", inbox_prefix="_INBOX_me")
        await link.connect()
        await link.close()
    finally:
        server.stop()


def outcomes(results: list[Reply | BaseException]) -> tuple[int, int]:
    """How many were answered and how many are unknown; anything else is wrong."""
    answered = [result for result in results if isinstance(result, Reply)]
    unknown = [result for result in results if isinstance(result, AnswerLost)]
    assert len(answered) + len(unknown) == len(results)
    return len(answered), len(unknown)


@pytest.mark.alone
async def test_kill_and_restart_in_the_middle_of_thousands(link: Link, server: KvServer) -> None:
    changes: list[str] = []
    link.on_disconnect.append(lambda: changes.append("down"))
    link.on_connect.append(lambda: changes.append("up"))
    feed: list[bytes] = []
    link.subscribe("feed", lambda *frame: feed.append(frame[3]))
    await link.api("STREAM.CREATE.T", {"name": "T", "subjects": ["t.*"], "max_msgs_per_subject": 1})
    first_server = link.server_id
    futures = [link.request(f"t.{n}", b"", b"x" * 200, 5000) for n in range(5000)]
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    futures += [link.request(f"t.{n}", b"", b"x" * 200, 5000) for n in range(5000, 15_000)]  # surely on their way
    server.kill()
    start = time.monotonic()
    answered, unknown = outcomes(await asyncio.gather(*futures, return_exceptions=True))
    assert answered > 0
    assert unknown > 0
    assert time.monotonic() - start < 2  # at once, not by time-out
    assert not link.connected
    with pytest.raises(NotSent):
        link.request("t.late", b"", b"never", 5000)
    with pytest.raises(NotSent):
        link.send("t.late", b"", b"never")
    server.start()
    await until(lambda: link.connected)
    assert link.generation == 2
    assert link.server_id != first_server
    assert changes == ["down", "up"]
    link.send("feed", b"", b"again")
    await until(lambda: feed == [b"again"])
    state = (await link.api("STREAM.INFO.T", {"subjects_filter": "t.late"}))["state"]
    assert state["messages"] >= answered
    assert "subjects" not in state  # nothing was kept back for the new connection


@pytest.mark.alone
@pytest.mark.judge
async def test_a_frozen_server_is_noticed_and_found_again(link: Link, server: KvServer) -> None:
    echo(link)
    server.freeze()
    start = time.monotonic()
    futures = [link.request("echo", b"", b"x", 400) for _ in range(1000)]
    answered, unknown = outcomes(await asyncio.gather(*futures, return_exceptions=True))
    assert unknown == 1000, answered
    assert time.monotonic() - start < 1.5  # each by its own time-out
    await until(lambda: not link.connected)
    assert time.monotonic() - start < 9  # two pings unanswered
    with pytest.raises(NotSent):
        link.request("echo", b"", b"x", 400)
    await asyncio.sleep(3)  # attempts to connect to a frozen server must end, too
    server.thaw()
    await until(lambda: link.connected)
    assert link.generation == 2
    assert (await link.request("echo", b"", b"y", 5000)).payload == b"y"


async def test_a_short_freeze_costs_nothing_but_time(link: Link, server: KvServer) -> None:
    echo(link)
    server.freeze()
    futures = [link.request("echo", b"", b"%d" % n, 5000) for n in range(1000)]
    await asyncio.sleep(0.5)
    server.thaw()
    replies = await asyncio.gather(*futures)
    assert [int(reply.payload) for reply in replies] == list(range(1000))
    assert link.generation == 1


async def test_a_full_write_buffer_refuses(server: KvServer) -> None:
    link = Link(config(server), name="test")
    await link.connect()
    server.freeze()
    body = b"x" * 1_000_000

    async def fill() -> None:
        for _ in range(200):
            link.send("a", b"", body)
            await asyncio.sleep(0)

    with pytest.raises(NotSent, match="buffer"):
        await fill()
    server.thaw()
    echo(link)
    async with asyncio.timeout(20):
        while True:
            try:
                assert (await link.request("echo", b"", b"y", 5000)).payload == b"y"
                break
            except NotSent:
                await asyncio.sleep(0.05)
    await link.close()


async def test_credentials_refused_later_do_not_end_the_link(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        link = Link(config(server), name="test")
        await link.connect()
        right = (tmp_path / "nats.conf").read_text()
        server.kill()
        (tmp_path / "nats.conf").write_text(right.replace(server.password, "another"))
        server.start()
        await asyncio.sleep(1)
        assert not link.connected
        server.kill()
        (tmp_path / "nats.conf").write_text(right)
        server.start()
        await until(lambda: link.connected)
        assert link.generation == 2
        await link.close()


async def test_close_ends_what_waits_and_leaves_no_task(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    link.subscribe("silent", lambda *_: None)
    future = link.request("silent", b"", b"", 60_000)
    with caplog.at_level(logging.WARNING):
        await link.close()
    with pytest.raises(AnswerLost):
        await future
    assert not caplog.records
