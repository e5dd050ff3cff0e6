"""The durable consumer that feeds the flusher: create, describe, pull with credit, acknowledge.

Redelivery after `limits.ACK_WAIT_S` is harmless (the fence in SQL), losing a message is impossible: only an
ack settles it. An ack names a sequence, so none is sent over another connection than its delivery's (F-conn).
"""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cenote import limits
from cenote.errors import SetupError, UnavailableError
from cenote.kv.clock import parse_time_us
from cenote.kv.deadline import ask
from cenote.kv.errors import JsError, JsNotFound, NotSent
from cenote.kv.link import Link
from cenote.kv.message import delivery, header_value

_NS = 1_000_000_000
_EXISTS = 10148
_FIRST_PASS = "cenote.first_pass"
_EXPIRES_S = 2  # what a frozen flusher has asked for is still delivered to it, and comes again after ack_wait
_HEARTBEAT_S = 0.5
_REQUESTS = 4  # how many requests may share the bytes that are granted: more would wait for each other
_SILENCE_S_MAX = 1.6  # three heartbeats missed: the server has forgotten the request
_TROUBLE_WAIT_S = 0.25
_ENDED = re.compile(rb"Batch Completed|MaxBytes")  # statuses (409) of a request that was served to its end
_log = logging.getLogger("cenote.kv")

OnMessage = Callable[[int, int, bytes, bytes, bytes, bytes], None]
"""Takes sequence, time (µs), subject, header, payload and the reply subject that the ack needs."""


class ConsumerInfo(NamedTuple):
    """A durable consumer as its leader describes it."""

    floor: int  # ack_floor.stream_seq: everything up to it is settled, superseded or gone
    delivered: int  # delivered.stream_seq
    pending: int  # live entries not yet delivered
    ack_pending: int  # delivered and not yet settled
    redelivered: int
    waiting: int  # open pull requests
    created: str
    leader: str | None
    config: dict[str, Any]
    generation: int
    acked_ms: int = 0  # when its floor was last moved by an ack, in ms since 1970; 0: not known

    @property
    def first_pass(self) -> int:
        """The stream's last sequence when the durable was created: up to here it delivers what others have seen."""
        return int((self.config.get("metadata") or {}).get(_FIRST_PASS, 0))


def consumer_config(name: str, *, batch: int, flushers: int, first_pass: int) -> dict[str, Any]:
    """Explicit acks, everything from the start, redelivery for ever (nats facts 3, rule 18)."""
    return {
        "name": name,
        "durable_name": name,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "replay_policy": "instant",
        "ack_wait": limits.ACK_WAIT_S * _NS,
        "max_deliver": -1,
        "max_ack_pending": 2 * batch * (flushers + 1),
        "metadata": {_FIRST_PASS: str(first_pass)},
    }


async def ensure_consumer(
    link: Link, stream: str, name: str, *, batch: int, flushers: int = 1, first_pass: int = 0
) -> ConsumerInfo:
    """Create the durable, or take the one that exists (its settings are not changed, rule 22).

    first_pass: the stream's last sequence, which a durable that is created now keeps for all its users.

    Raises:
        SetupError: it exists, and with its settings some entries would never be flushed.
    """
    body = {
        "stream_name": stream,
        "action": "create",
        "config": consumer_config(name, batch=batch, flushers=flushers, first_pass=first_pass),
    }
    try:
        answer = await ask(link, f"CONSUMER.CREATE.{stream}.{name}", body, link.request_timeout_ms)
        return _info(answer, link.generation)
    except JsError as error:
        if error.err_code != _EXISTS:
            raise
    info = await consumer_info(link, stream, name)
    if info is None:
        raise UnavailableError(f"consumer {name} was deleted by another process", tier="DISTRIBUTED_KV")
    faults = _faults(info.config)
    if faults:
        raise SetupError(f"consumer {name} of {stream} would skip entries: {', '.join(faults)}")
    return info


def _faults(config: dict[str, Any]) -> list[str]:
    faults = [
        f"{setting} is set"
        for setting in ("filter_subject", "filter_subjects", "deliver_subject", "pause_until")
        if config.get(setting)
    ]
    if config.get("ack_policy") != "explicit":
        faults.append("ack_policy is not explicit")
    if config.get("deliver_policy") != "all":
        faults.append("deliver_policy is not all")
    if config.get("max_deliver", -1) > 0:
        faults.append("max_deliver is limited")
    if config.get("headers_only"):
        faults.append("headers_only is set")
    return faults


async def consumer_info(link: Link, stream: str, name: str) -> ConsumerInfo | None:
    """None when there is no such consumer."""
    try:
        return _info(await ask(link, f"CONSUMER.INFO.{stream}.{name}", None, link.request_timeout_ms), link.generation)
    except JsNotFound:
        return None


async def delete_consumer(link: Link, stream: str, name: str) -> bool:
    """Whether there was one."""
    try:
        await link.api(f"CONSUMER.DELETE.{stream}.{name}")
    except JsNotFound:
        return False
    return True


def _info(answer: dict[str, Any], generation: int) -> ConsumerInfo:
    return ConsumerInfo(
        floor=answer["ack_floor"]["stream_seq"],
        delivered=answer["delivered"]["stream_seq"],
        pending=answer["num_pending"],
        ack_pending=answer["num_ack_pending"],
        redelivered=answer["num_redelivered"],
        waiting=answer["num_waiting"],
        created=answer["created"],
        leader=(answer.get("cluster") or {}).get("leader"),
        config=answer["config"],
        generation=generation,
        acked_ms=_moment_ms(answer["ack_floor"].get("last_active")),
    )


def _moment_ms(text: str | None) -> int:
    return parse_time_us(text.encode()) // 1000 if text is not None and text.endswith("Z") else 0


# --- acknowledging ---------------------------------------------------------------------------------


def ack_many(link: Link, replies: Sequence[bytes], *, generation: int) -> None:
    """Settle deliveries of the connection `generation`; NotSent when it is gone (then they come again)."""
    _settle(link, replies, b" 0\r\n\r\n", generation)


def progress_many(link: Link, replies: Sequence[bytes], *, generation: int) -> None:
    """Begin ack_wait anew for deliveries that are still being worked on."""
    _settle(link, replies, b" 4\r\n+WPI\r\n", generation)


def nak(link: Link, reply: bytes, delay_s: float, *, generation: int) -> None:
    """Have one delivered again after a delay (rule 22)."""
    body = b'-NAK {"delay": %d}' % int(delay_s * _NS)
    _settle(link, [reply], b" %d\r\n%b\r\n" % (len(body), body), generation)


def _settle(link: Link, replies: Sequence[bytes], tail: bytes, generation: int) -> None:
    if link.generation != generation:
        raise NotSent("reconnected since the delivery", tier="DISTRIBUTED_KV")
    if replies:
        link.send_raw(b"PUB " + (tail + b"PUB ").join(replies) + tail)


# --- pulling ---------------------------------------------------------------------------------------


class Pull:
    """Keeps the consumer's messages coming, never more than `credit` that the caller has not released.

    `on_message` is called for each delivery; the caller calls `release(n)` when it is done with n of them,
    and forgets what it holds when the link's generation changes: those come again.
    """

    def __init__(
        self, link: Link, stream: str, consumer: str, on_message: OnMessage, *, batch: int, credit: int
    ) -> None:
        assert credit >= batch > 0
        self._link = link
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._on_message = on_message
        self._batch = batch
        self._credit = credit
        self._held = 0
        self._held_bytes = 0
        self._asked = 0
        self._asked_bytes = 0
        self._heard = 0.0
        self._inbox = link.new_inbox()
        self._retry_at = 0.0
        self.trouble: str | None = None  # the server's last complaint, None while messages can flow

    def start(self) -> None:
        """Ask for messages from now on, over every reconnect."""
        self._loop = asyncio.get_running_loop()
        self._subscription = self._link.subscribe(self._inbox, self._on_frame)
        self._link.on_connect.append(self._restart)
        self._link.on_disconnect.append(self._forget)
        self._task = asyncio.create_task(self._watch())
        self._restart()

    async def stop(self) -> None:
        """Ask for nothing more; what was delivered and not settled comes again after ack_wait."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._link.on_connect.remove(self._restart)
        self._link.on_disconnect.remove(self._forget)
        self._subscription.close()

    def release(self, count: int, size: int) -> None:
        """The caller is done with so many messages of this connection, of so many bytes."""
        self._held = max(0, self._held - count)
        self._held_bytes = max(0, self._held_bytes - size)
        self._ask()

    def _forget(self) -> None:
        self._asked = self._asked_bytes = self._held = self._held_bytes = 0

    def _restart(self) -> None:
        self._forget()
        self._retry_at = 0.0
        self._ask()

    def _ask(self) -> None:
        """Ask for more when that is worth a request; the server never holds more of them than `credit`."""
        free = min(self._credit - self._held - self._asked, self._batch)
        room = min(limits.PULL_BYTES_MAX - self._held_bytes - self._asked_bytes, limits.PULL_BYTES_MAX // _REQUESTS)
        if (
            free <= 0
            or room <= limits.PAYLOAD_BYTES_MAX
            or (self._asked and free < self._batch // 2)
            or self._loop.time() < self._retry_at
        ):
            return
        body = {
            "batch": free,
            "max_bytes": room,
            "expires": _EXPIRES_S * _NS,
            "idle_heartbeat": int(_HEARTBEAT_S * _NS),
        }
        with contextlib.suppress(NotSent):  # a reconnect begins anew
            self._link.send(self._next, self._inbox.encode(), json.dumps(body).encode())
            self._asked += free
            self._asked_bytes += room
            self._heard = self._loop.time()

    def _on_frame(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        self._heard = self._loop.time()
        if not reply:
            self._on_status(header)
            return
        self.trouble = None
        self._held += 1
        self._held_bytes += len(payload)
        told = delivery(reply)
        self._on_message(told.sequence, told.time_us, subject, header, payload, reply)
        self._no_longer_asked(1, len(payload))  # one more held, one less asked for: no more credit than before
        if not self._asked:
            self._ask()

    def _on_status(self, header: bytes) -> None:
        status = header[9:12]
        if status == b"100":  # heartbeat: the request is still known
            self.trouble = None
            return
        left = header_value(header, b"Nats-Pending-Messages: ")
        left_bytes = header_value(header, b"Nats-Pending-Bytes: ")
        self._no_longer_asked(int(left) if left else self._asked, int(left_bytes or 0))
        if status != b"408" and not _ENDED.search(header):  # 408: expired, as it should
            self.trouble = header[9 : header.find(b"\r\n")].decode()
            self._retry_at = self._loop.time() + _TROUBLE_WAIT_S
            _log.info("pull: %s", self.trouble)
            return
        self._ask()

    def _no_longer_asked(self, count: int, size: int) -> None:
        self._asked = max(0, self._asked - count)
        self._asked_bytes = max(0, self._asked_bytes - size) if self._asked else 0

    async def _watch(self) -> None:
        """Ask again after trouble, and after silence, which means that the request was forgotten."""
        while True:
            await asyncio.sleep(_TROUBLE_WAIT_S)
            if self._asked and self._loop.time() - self._heard > _SILENCE_S_MAX:
                self._asked = self._asked_bytes = 0
            self._ask()
