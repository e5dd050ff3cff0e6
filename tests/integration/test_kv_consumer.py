"""The durable consumer: credit, acks, redelivery, and what a reconnect or a frozen puller changes."""

import asyncio
from typing import NamedTuple

import pytest
from kv_server import KvServer, config, link, server, until

from cenote.errors import SetupError
from cenote.kv.bucket import ensure
from cenote.kv.consumer import (
    Pull,
    ack_many,
    consumer_info,
    delete_consumer,
    ensure_consumer,
    nak,
    progress_many,
)
from cenote.kv.errors import NotSent
from cenote.kv.link import Link
from cenote.kv.message import delivery
from cenote.kv.stream import StateStream
from cenote.naming import Names

__all__ = ["link", "server"]


class Got(NamedTuple):
    sequence: int
    time_us: int
    subject: bytes
    header: bytes
    payload: bytes
    reply: bytes


@pytest.fixture
async def stream(link: Link, server: KvServer) -> StateStream:
    await ensure(link, Names(), config(server))
    return StateStream(link, Names())


async def fill(stream: StateStream, count: int, start: int = 0) -> None:
    await asyncio.gather(
        *(
            stream.publish(b"$KV.AGENT_STATE.a.%d" % n, b"Cenote: 1\r\n", b"%d" % n, 5000)
            for n in range(start, start + count)
        )
    )


def pull(stream: StateStream, got: list[Got], *, batch: int = 100, credit: int = 300) -> Pull:
    return Pull(
        stream.link,
        stream.name,
        "flush",
        lambda *frame: got.append(Got(*frame)),
        batch=batch,
        credit=credit,
    )


async def test_everything_comes_once_and_the_floor_follows_the_acks(stream: StateStream) -> None:
    link = stream.link
    await ensure_consumer(link, stream.name, "flush", batch=100)
    got: list[Got] = []
    puller = pull(stream, got)
    puller.start()
    await fill(stream, 1000)
    acked = 0
    while acked < 1000:
        await until(lambda so_far=acked: len(got) > so_far)
        ready = got[acked:]
        ack_many(link, [message.reply for message in ready], generation=link.generation)
        acked += len(ready)
        puller.release(len(ready), 0)
    assert [message.payload for message in sorted(got)] == [b"%d" % n for n in range(1000)]
    message = await stream.leader_get(got[0].subject.decode())
    assert message is not None
    assert (message.sequence, message.time_us) == (got[0].sequence, got[0].time_us)
    info = await consumer_info(link, stream.name, "flush")
    assert info is not None
    assert (info.floor, info.pending, info.ack_pending) == (1000, 0, 0)
    await puller.stop()


async def test_no_more_than_the_credit_is_ever_held(stream: StateStream) -> None:
    await ensure_consumer(stream.link, stream.name, "flush", batch=100, flushers=2)
    got: list[Got] = []
    puller = pull(stream, got, batch=40, credit=90)
    puller.start()
    await fill(stream, 500)
    await until(lambda: len(got) == 90)
    await asyncio.sleep(0.3)
    assert len(got) == 90
    ack_many(stream.link, [m.reply for m in got[:50]], generation=stream.link.generation)
    puller.release(50, 0)
    await until(lambda: len(got) == 140)
    await puller.stop()


@pytest.mark.judge
async def test_progress_keeps_a_message_and_nak_brings_it_back(stream: StateStream) -> None:
    link = stream.link
    await ensure_consumer(link, stream.name, "flush", batch=100)
    got: list[Got] = []
    puller = pull(stream, got)
    puller.start()
    await fill(stream, 2)
    await until(lambda: len(got) == 2)
    kept, refused = got
    nak(link, refused.reply, 0.2, generation=link.generation)
    await until(lambda: len(got) == 3)
    assert got[2].sequence == refused.sequence
    assert delivery(got[2].reply).deliveries == 2
    for _ in range(7):  # past ack_wait
        progress_many(link, [kept.reply, got[2].reply], generation=link.generation)
        await asyncio.sleep(1)
    assert len(got) == 3
    await until(lambda: len(got) == 5)  # and without progress they come again
    await puller.stop()


@pytest.mark.judge
async def test_a_restart_brings_back_what_was_not_acked(stream: StateStream, server: KvServer) -> None:
    link = stream.link
    await ensure_consumer(link, stream.name, "flush", batch=100)
    got: list[Got] = []
    puller = pull(stream, got)
    puller.start()
    await fill(stream, 200)
    await until(lambda: len(got) == 200)
    old_generation, old = link.generation, list(got)
    server.kill()
    await until(lambda: not link.connected)
    got.clear()
    server.start()
    await until(lambda: link.connected)
    with pytest.raises(NotSent):
        ack_many(link, [message.reply for message in old], generation=old_generation)
    await fill(stream, 10, start=1000)
    await until(lambda: len({message.sequence for message in got}) == 210)
    ack_many(link, [message.reply for message in got], generation=link.generation)
    puller.release(len(got), sum(len(message.payload) for message in got))
    await puller.stop()


async def test_a_deleted_consumer_is_said_and_a_new_one_found(stream: StateStream) -> None:
    link = stream.link
    await ensure_consumer(link, stream.name, "flush", batch=100)
    got: list[Got] = []
    puller = pull(stream, got)
    puller.start()
    await fill(stream, 1)
    await until(lambda: len(got) == 1)
    assert await delete_consumer(link, stream.name, "flush")
    assert not await delete_consumer(link, stream.name, "flush")
    assert await consumer_info(link, stream.name, "flush") is None
    await until(lambda: puller.trouble is not None)
    await ensure_consumer(link, stream.name, "flush", batch=100)
    await until(lambda: len(got) == 2)
    assert puller.trouble is None
    await puller.stop()


async def test_a_consumer_that_would_skip_entries_is_refused(stream: StateStream) -> None:
    link = stream.link
    first = await ensure_consumer(link, stream.name, "flush", batch=100)
    again = await ensure_consumer(link, stream.name, "flush", batch=500)
    assert again.config["max_ack_pending"] == first.config["max_ack_pending"] == 400
    await delete_consumer(link, stream.name, "flush")
    narrow = {"durable_name": "flush", "ack_policy": "explicit", "filter_subject": "$KV.AGENT_STATE.a.>"}
    body = {"stream_name": stream.name, "config": narrow}
    await link.api(f"CONSUMER.CREATE.{stream.name}.flush.$KV.AGENT_STATE.a.>", body)
    with pytest.raises(SetupError, match="filter_subject"):
        await ensure_consumer(link, stream.name, "flush", batch=100)
