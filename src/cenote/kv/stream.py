"""The verbs of the state stream, in bytes and integers: publish, read, list, purge, describe.

The stream's leader is authoritative for everything; a direct get may be answered by a follower that lags
behind (rule 9), so "absent" and refused conditions are confirmed by `leader_get`.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cenote import limits
from cenote.errors import ConsistencyError, RejectedError, SetupError, UnavailableError
from cenote.kv.bucket import StreamInfo, stream_info, update_metadata
from cenote.kv.clock import parse_time_us
from cenote.kv.errors import JsNotFound, NotSent, TooManyResults, js_error
from cenote.kv.link import Link
from cenote.kv.message import Message, last_value, stored
from cenote.kv.mux import Reply
from cenote.naming import AGENT_STATE, Names

_EXPECTED = b"Nats-Expected-Last-Subject-Sequence: %d\r\n"
_PAGE_BYTES = 4 * limits.MIB  # of one page of a listing, which the server sends at one go
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class StateStream:
    """The stream under AGENT_STATE, or under another bucket that is to be read, on one link."""

    def __init__(self, link: Link, names: Names, *, timeout_ms: int = 5000, bucket: str = AGENT_STATE) -> None:
        self.link = link
        self.name = names.stream(bucket)
        self.prefix = names.subject(bucket)
        self._timeout_ms = timeout_ms
        self._direct = b"$JS.API.DIRECT.GET." + self.name.encode()
        self._direct_key = self._direct + b"."
        self._trusted: int | None = None  # over this connection it has named our store; None: nobody asks
        self._stranger: SetupError | None = None

    # --- whose it is -------------------------------------------------------------------------------

    def trust(self, generation: int) -> None:
        """Over this connection the stream was found to be our store's. From the first call on every connection needs
        one: what answers at an address after a reconnect may be another NATS (rule 8)."""
        self._trusted, self._stranger = generation, None

    def distrust(self, why: SetupError) -> None:
        """Nothing is written to it, and nothing of it believed, before it is trusted again."""
        self._trusted, self._stranger = -1, why

    @property
    def ours(self) -> bool:
        """Whether it may be used over the present connection."""
        return self._trusted is None or self._trusted == self.link.generation

    def demand_ours(self) -> None:
        """Raises SetupError when it is another store's, NotSent while that is not known."""
        if self.ours:
            return
        if self._stranger is not None:
            raise SetupError(str(self._stranger.args[0]), hint=self._stranger.hint)
        raise NotSent("the NATS that answers has not yet shown that it is this store's", tier="DISTRIBUTED_KV")

    # --- writing -----------------------------------------------------------------------------------

    def publish_nowait(
        self, subject: bytes, header: bytes, payload: bytes, timeout_ms: int, expected: int | None = None
    ) -> asyncio.Future[Reply]:
        """Send an entry; `sequence_of` reads the answer.

        header: whole lines ("Name: value\\r\\n"). expected: the subject's last sequence, 0 for none; read
        under the present connection.

        Raises:
            NotSent, RejectedError: at once; nothing was sent.
        """
        if expected is not None:
            header += _EXPECTED % expected
        if self._trusted != self.link.generation:
            self.demand_ours()
        return self.link.request(subject, header, payload, timeout_ms)

    async def publish(
        self, subject: bytes, header: bytes, payload: bytes, timeout_ms: int, expected: int | None = None
    ) -> int:
        """Store an entry and return its sequence.

        Raises:
            WrongSequence, StreamFull, NoSpace, JsError: refused, nothing stored.
            NotSent, NoResponders: nothing stored.
            AnswerLost: unknown.
        """
        return sequence_of(await self.publish_nowait(subject, header, payload, timeout_ms, expected))

    async def purge_below(self, sequence: int, *, generation: int, subjects: str | None = None) -> int:
        """Remove every entry below `sequence`, or those of some subjects; the number removed. Never retried, never
        buffered (rule 2).

        Raises:
            NotSent: the facts were read under another connection than the present one.
        """
        self.demand_ours()
        if self.link.generation != generation:
            raise NotSent("reconnected since the sequence was read", tier="DISTRIBUTED_KV")
        body: dict[str, Any] = {"seq": sequence}
        if subjects is not None:
            body["filter"] = subjects
        answer = await self.link.api(f"STREAM.PURGE.{self.name}", body, self._timeout_ms)
        return int(answer["purged"])

    # --- reading -----------------------------------------------------------------------------------

    async def get(self, subject: bytes, timeout_ms: int | None = None) -> Message | None:
        """The live entry, from whichever replica answers first."""
        if self._trusted != self.link.generation:
            self.demand_ours()
        reply = await self.link.request(self._direct_key + subject, b"", b"", timeout_ms or self._timeout_ms)
        return message_of(reply)

    def get_nowait(self, subject: bytes, timeout_ms: int) -> asyncio.Future[Reply]:
        """The same for pipelining; `message_of` reads the answer."""
        if self._trusted != self.link.generation:
            self.demand_ours()
        return self.link.request(self._direct_key + subject, b"", b"", timeout_ms)

    async def leader_get(self, subject: str, timeout_ms: int | None = None) -> Message | None:
        """The live entry as the leader has it: read-your-writes."""
        return await self._leader_get({"last_by_subj": subject}, timeout_ms)

    async def leader_get_sequence(self, sequence: int) -> Message | None:
        """The entry with exactly this sequence at the leader; None: overwritten, purged or lost."""
        return await self._leader_get({"seq": sequence})

    async def leader_next(self, filter_subject: str, from_sequence: int) -> Message | None:
        """The first live entry from a sequence on, as the leader has it; None when there is none."""
        return await self._leader_get({"next_by_subj": filter_subject, "seq": from_sequence})

    async def first_since(self, time_us: int) -> int | None:
        """The first sequence written at or after a server time, at the leader; None when there is none."""
        moment = (_EPOCH + timedelta(microseconds=time_us)).isoformat().replace("+00:00", "Z")
        message = await self._leader_get({"start_time": moment, "next_by_subj": self.prefix + ">"})
        return None if message is None else message.sequence

    async def _leader_get(self, body: dict[str, Any], timeout_ms: int | None = None) -> Message | None:
        self.demand_ours()
        return await leader_get(self.link, self.name, body, timeout_ms or self._timeout_ms)

    async def multi_get(self, subjects: Sequence[str]) -> tuple[list[Message], int | None]:
        """The live entries of up to 1,024 subjects (or of wildcards matching so many), as one snapshot.

        Returns:
            The entries in sequence order, and the sequence the snapshot is complete up to; (`[]`, None) when
            nothing matches, for the server names no sequence then.

        Raises:
            TooManyResults: more than 1,024 entries or too many bytes; use `live`.
        """
        if len(subjects) > limits.MULTI_GET_SUBJECTS_MAX:
            raise RejectedError(f"{len(subjects)} subjects in one read; {limits.MULTI_GET_SUBJECTS_MAX} at most")
        messages, end = await self._batch({"multi_last": list(subjects)})
        if end is None:
            return [], None
        if int(last_value(end, b"Nats-Num-Pending: ") or 0):
            raise TooManyResults(413, 0, "the answer was cut short")
        return messages, int(last_value(end, b"Nats-UpTo-Sequence: ") or 0)

    async def live(self, filter_subject: str | None = None, from_sequence: int = 1) -> AsyncIterator[Message]:
        """Live entries in sequence order, any number of them.

        An entry that was live at the start is yielded, at least once; one that is overwritten meanwhile moves
        ahead of the reader and is met there. Raises what a read raises; a listing is not resumed over a
        reconnect.
        """
        page = limits.SCAN_PAGE_KEYS
        filter_subject = filter_subject or self.prefix + ">"
        body = {"next_by_subj": filter_subject, "batch": page, "max_bytes": _PAGE_BYTES}
        sequence = from_sequence
        while True:
            messages, end = await self._batch(body | {"seq": sequence})
            size = 0
            for message in messages:
                size += len(message.header) + len(message.payload)
                yield message
            # Only a page that was cut neither by count nor by bytes has met the end of the stream. The count
            # of pending messages would not do: it is taken when the page begins.
            if end is None or (len(messages) < page and size < _PAGE_BYTES // 2):
                return
            if not messages:
                raise ConsistencyError("the server ended a listing without reaching its end")
            sequence = messages[-1].sequence + 1

    async def _batch(self, body: dict[str, Any]) -> tuple[list[Message], bytes | None]:
        """Messages and closing status of a direct get with many answers; None when nothing was found."""
        self.demand_ours()
        parts = await self.link.request_many(self._direct, json.dumps(body).encode(), self._timeout_ms)
        end = parts.pop().header
        status = end[9:12]
        if status == b"404":
            return [], None
        if status == b"413":
            raise TooManyResults(413, 0, "more than 1,024 entries match")
        if status != b"204":
            raise js_error(int(status), 0, end[13 : end.find(b"\r\n")].decode())
        return [stored(part.header, part.payload) for part in parts], end

    # --- the stream itself -------------------------------------------------------------------------

    async def info(self, deadline_ms: int = 0) -> StreamInfo:
        """The stream as its leader describes it; with a deadline, asked again while nobody answers.

        Raises:
            UnavailableError: also when the leader is one of a minority; another one may have taken over.
        """
        info = await stream_info(self.link, self.name, deadline_ms)
        if info.alone_ms > limits.SILENCE_MS_MAX:
            raise UnavailableError(
                f"the stream's leader has not heard of a majority for {info.alone_ms} ms", tier="DISTRIBUTED_KV"
            )
        return info

    async def update_metadata(self, changes: dict[str, str]) -> StreamInfo:
        """Set `cenote.*` metadata; callers hold the lock of the epochs row."""
        return await update_metadata(self.link, self.name, changes)


async def leader_get(link: Link, stream: str, body: dict[str, Any], timeout_ms: int) -> Message | None:
    """One entry of a stream, as its leader has it."""
    try:
        answer = await link.api(f"STREAM.MSG.GET.{stream}", body, timeout_ms)
    except JsNotFound as error:
        if error.err_code == 10037:  # no message found
            return None
        raise
    found = answer["message"]
    return Message(
        found["subject"],
        found["seq"],
        parse_time_us(found["time"].encode()),
        base64.b64decode(found.get("hdrs", "")),
        base64.b64decode(found.get("data", "")),
    )


def sequence_of(reply: Reply) -> int:
    """The sequence in the answer to a publish; raises its error, typed."""
    payload = reply.payload
    if payload.startswith(b'{"stream":'):
        start = payload.find(b'"seq":') + 6
        end = payload.find(b",", start)
        return int(payload[start:end] if end > 0 else payload[start:-1])
    error = json.loads(payload)["error"]
    raise js_error(error.get("code", 0), error.get("err_code", 0), error.get("description", ""))


def message_of(reply: Reply) -> Message | None:
    """The entry in the answer to a direct get; None when there is none."""
    header = reply.header
    if header.startswith(b"NATS/1.0\r\n"):
        return stored(header, reply.payload)
    if header.startswith(b"NATS/1.0 404"):
        return None
    raise js_error(int(header[9:12]), 0, header[13 : header.find(b"\r\n")].decode())
