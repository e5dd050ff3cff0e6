"""The verbs of the state stream against a real server."""

import asyncio
import time

import pytest
from kv_server import KvServer, config, link, server

from cenote.errors import BackpressureError, ConflictError, RejectedError
from cenote.kv.bucket import ensure
from cenote.kv.deadline import with_deadline
from cenote.kv.errors import (
    AnswerLost,
    JsError,
    NoResponders,
    NotSent,
    StreamFull,
    TooManyResults,
    WrongSequence,
)
from cenote.kv.link import Link
from cenote.kv.message import header_value, republished
from cenote.kv.stream import StateStream, sequence_of
from cenote.kv.watch import Feed
from cenote.naming import Names

__all__ = ["link", "server"]

HEADER = b"Cenote: 1;j;0123456789abcdef.1f;;\r\n"


@pytest.fixture
async def stream(link: Link, server: KvServer) -> StateStream:
    await ensure(link, Names(), config(server))
    return StateStream(link, Names())


def subject(token: str) -> bytes:
    return b"$KV.AGENT_STATE." + token.encode()


async def put(stream: StateStream, token: str, value: bytes, expected: int | None = None) -> int:
    return await stream.publish(subject(token), HEADER, value, 5000, expected)


async def test_put_and_get(stream: StateStream) -> None:
    assert await stream.get(subject("a.k")) is None
    assert await stream.leader_get("$KV.AGENT_STATE.a.k") is None
    sequence = await put(stream, "a.k", b"value")
    direct, leader = await stream.get(subject("a.k")), await stream.leader_get("$KV.AGENT_STATE.a.k")
    assert direct is not None
    assert leader is not None
    assert direct.sequence == leader.sequence == sequence
    assert direct.subject == leader.subject == "$KV.AGENT_STATE.a.k"
    assert direct.payload == leader.payload == b"value"
    assert direct.time_us == leader.time_us
    assert abs(direct.time_us / 1e6 - time.time()) < 5
    for message in (direct, leader):
        assert header_value(message.header, b"Cenote: ") == b"1;j;0123456789abcdef.1f;;"
    by_sequence = await stream.leader_get_sequence(sequence)
    assert by_sequence == leader
    await put(stream, "a.k", b"newer")
    assert await stream.leader_get_sequence(sequence) is None


async def test_a_publisher_cannot_forge_the_servers_lines(stream: StateStream) -> None:
    forged = b"Nats-Sequence: 999\r\nNats-Subject: $KV.AGENT_STATE.b.k\r\nNats-Time-Stamp: 2001-01-01T00:00:00Z\r\n"
    sequence = await stream.publish(subject("a.k"), HEADER + forged, b"v", 5000)
    message = await stream.get(subject("a.k"))
    assert message is not None
    assert (message.subject, message.sequence) == ("$KV.AGENT_STATE.a.k", sequence)
    assert abs(message.time_us / 1e6 - time.time()) < 5


async def test_compare_and_set(stream: StateStream) -> None:
    first = await put(stream, "a.k", b"1", expected=0)
    with pytest.raises(WrongSequence) as caught:
        await put(stream, "a.k", b"2", expected=0)
    assert isinstance(caught.value, ConflictError)
    assert caught.value.err_code == 10071
    second = await put(stream, "a.k", b"2", expected=first)
    assert second > first
    racers = await asyncio.gather(
        *(put(stream, "a.k", b"%d" % n, expected=second) for n in range(50)), return_exceptions=True
    )
    assert sum(isinstance(outcome, int) for outcome in racers) == 1
    assert sum(isinstance(outcome, WrongSequence) for outcome in racers) == 49


async def test_rollups_and_deletes_of_single_messages_are_refused(stream: StateStream) -> None:
    await put(stream, "b.k", b"other agent")
    with pytest.raises(JsError, match="rollup"):
        await stream.publish(subject("a.k"), b"Nats-Rollup: all\r\n", b"", 5000)
    with pytest.raises(JsError, match="not permitted"):
        await stream.link.api(f"STREAM.MSG.DELETE.{stream.name}", {"seq": 1})
    assert await stream.get(subject("b.k")) is not None


async def test_a_full_stream_refuses_new_keys_and_keeps_the_old(link: Link, server: KvServer) -> None:
    await ensure(link, Names("small"), config(server, bytes_max=1_048_576))
    small = StateStream(link, Names("small"))
    filled = 0

    async def fill() -> None:
        nonlocal filled
        for filled in range(100):
            await small.publish(b"$KV.small_AGENT_STATE.a.%d" % filled, HEADER, b"x" * 50_000, 5000)

    with pytest.raises(StreamFull) as caught:
        await fill()
    assert isinstance(caught.value, BackpressureError)
    assert filled > 10
    assert (await small.info()).messages == filled
    await small.publish(b"$KV.small_AGENT_STATE.a.0", HEADER, b"overwrite", 5000)


async def test_purge_removes_below_and_only_on_the_same_connection(stream: StateStream) -> None:
    sequences = [await put(stream, f"a.{n}", b"v") for n in range(10)]
    generation = stream.link.generation
    assert await stream.purge_below(sequences[4], generation=generation) == 4
    info = await stream.info()
    assert (info.first_seq, info.last_seq, info.messages) == (sequences[4], sequences[9], 6)
    assert info.generation == generation
    with pytest.raises(NotSent):
        await stream.purge_below(sequences[9], generation=generation - 1)
    assert (await stream.info()).messages == 6
    assert await stream.purge_below(1_000_000, generation=generation) == 6
    assert await put(stream, "a.0", b"v") == 1_000_000


async def test_many_keys_in_one_snapshot(stream: StateStream) -> None:
    for n in range(20):
        await put(stream, f"a.{n}", b"%d" % n)
    last = await put(stream, "b.0", b"b")
    messages, up_to = await stream.multi_get(["$KV.AGENT_STATE.a.*"])
    assert [message.payload for message in messages] == [b"%d" % n for n in range(20)]
    assert up_to == last
    some, _ = await stream.multi_get([f"$KV.AGENT_STATE.{token}" for token in ("a.3", "a.x", "b.0")])
    assert [message.payload for message in some] == [b"3", b"b"]
    assert await stream.multi_get(["$KV.AGENT_STATE.none.*"]) == ([], None)
    with pytest.raises(RejectedError):
        await stream.multi_get(["$KV.AGENT_STATE.a.x"] * 1025)
    await asyncio.gather(*(put(stream, f"c.{n}", b"") for n in range(1025)))
    with pytest.raises(TooManyResults):
        await stream.multi_get(["$KV.AGENT_STATE.c.*"])


async def test_listing_any_number_in_order(stream: StateStream) -> None:
    assert [message async for message in stream.live()] == []
    futures = [stream.publish_nowait(subject(f"a.{n}"), HEADER, b"%d" % n, 5000) for n in range(3000)]
    sequences = [sequence_of(reply) for reply in await asyncio.gather(*futures)]
    await put(stream, "b.0", b"b")
    listed = [message async for message in stream.live("$KV.AGENT_STATE.a.>")]
    assert [message.sequence for message in listed] == sequences
    assert [message.payload for message in listed] == [b"%d" % n for n in range(3000)]
    tail = [message async for message in stream.live(from_sequence=sequences[2990])]
    assert len(tail) == 11


async def test_listing_large_entries(stream: StateStream) -> None:
    for n in range(24):
        await put(stream, f"a.{n}", b"x" * 500_000)
    assert len([message async for message in stream.live()]) == 24


@pytest.mark.alone
@pytest.mark.judge
async def test_listing_loses_no_key_that_is_overwritten_meanwhile(stream: StateStream) -> None:
    keys = 10_500
    await asyncio.gather(*(put(stream, f"a.{n}", b"0") for n in range(keys)))
    rounds = overwritten = 0
    stop = asyncio.Event()

    async def overwrite(offset: int) -> None:
        nonlocal overwritten
        n = offset
        while not stop.is_set():
            await put(stream, f"a.{n % keys}", b"new")
            overwritten += 1
            n += 7

    writers = [asyncio.create_task(overwrite(offset)) for offset in range(16)]
    try:
        async with asyncio.timeout(60):
            while rounds < 3 or overwritten < 500:
                seen: dict[str, int] = {}
                async for message in stream.live():
                    assert message.sequence > seen.get(message.subject, 0)
                    seen[message.subject] = message.sequence
                assert len(seen) == keys
                rounds += 1
    finally:
        stop.set()
        await asyncio.gather(*writers)
    assert rounds >= 3


async def test_the_first_entry_since_a_time(stream: StateStream) -> None:
    await put(stream, "a.1", b"old")
    first = await stream.leader_get("$KV.AGENT_STATE.a.1")
    assert first is not None
    await asyncio.sleep(0.01)
    young = await put(stream, "a.2", b"young")
    assert await stream.first_since(first.time_us + 1000) == young
    assert await stream.first_since(first.time_us) == first.sequence
    assert await stream.first_since(int((time.time() + 3600) * 1e6)) is None


async def test_the_feed_tells_each_entry_and_its_predecessor(stream: StateStream) -> None:
    seen: list[tuple[str, int, int, bytes]] = []
    feed = Feed(
        stream.link,
        Names(),
        lambda subject, sequence, header, payload: seen.append((subject, sequence, republished(header)[0], payload)),
        subset="a.>",
    )
    first = await put(stream, "a.k", b"1")
    await put(stream, "b.k", b"other")
    second = await put(stream, "a.k", b"2")
    async with asyncio.timeout(5):
        while len(seen) < 2:
            await asyncio.sleep(0.01)
    name = subject("a.k").decode()
    assert seen == [(name, first, 0, b"1"), (name, second, first, b"2")]
    feed.close()
    await put(stream, "a.k", b"3")
    await stream.get(subject("a.k"))
    assert len(seen) == 2


async def test_refusals_are_tried_again_and_unknown_outcomes_are_not(stream: StateStream, server: KvServer) -> None:
    calls = 0

    async def into_the_void() -> int:
        nonlocal calls
        calls += 1
        return sequence_of(await stream.link.request("no.stream", b"", b"", 1000))

    with pytest.raises(NoResponders) as caught:
        await with_deadline(stream.link, into_the_void, 400)
    assert calls > 2
    assert caught.value.attempts == calls
    server.kill()
    generation = stream.link.generation
    with pytest.raises((AnswerLost, NotSent)):  # whoever notices first
        await put(stream, "a.k", b"v")
    waiting = asyncio.create_task(with_deadline(stream.link, lambda: put(stream, "a.k", b"v"), 15_000))
    pinned = asyncio.create_task(
        with_deadline(stream.link, lambda: put(stream, "a.p", b"v"), 15_000, generation=generation)
    )
    await asyncio.sleep(0.2)
    server.start()
    assert await waiting > 0
    outcome = (await asyncio.gather(pinned, return_exceptions=True))[0]
    assert isinstance(outcome, int | NotSent)
