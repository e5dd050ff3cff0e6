"""Reads in a cluster, where a follower that lags behind may answer (I4, I5; flow rules 9, 10).

The stream's leader is authoritative. Asking it for every read would leave two servers idle, so a follower is believed
unless this process knows better: what it lacks, and what is older than the newest sequence that this process wrote,
read or heard of for the key, is asked of the leader. So is everything once the leader has been silent for too long,
for a follower on the wrong side of a partition goes on answering; so does a leader there, for more than 20 s (seen),
which is why it must have heard of a majority lately.

The newest sequences are kept in slots chosen by the key's hash. Two keys that share one cost a needless question to
the leader, never an old answer; and nothing is forgotten when L1 evicts a key.
"""

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Sequence

from cenote.engine.coherence import Coherence
from cenote.engine.entries import Target
from cenote.errors import UnavailableError
from cenote.kv.deadline import QUESTION_MS
from cenote.kv.errors import TooManyResults
from cenote.kv.message import Message
from cenote.kv.stream import StateStream

_SLOTS = 1 << 16  # half a MiB
_SIDE_BY_SIDE = 64  # questions to the leader at a time
_PAUSE_S = 0.005  # followers are behind by milliseconds


class Replicas:
    """What one process knows of a replicated stream, and its reads of it."""

    def __init__(self, stream: StateStream, coherence: Coherence) -> None:
        self._stream = stream
        self._coherence = coherence
        self._newest = array("Q", bytes(8 * _SLOTS))

    def met(self, subject: str, sequence: int) -> None:
        """This process wrote, read or heard of a key at this sequence: from now on it is shown nothing older."""
        slot = hash(subject) % _SLOTS
        if self._newest[slot] < sequence:
            self._newest[slot] = sequence

    def forget(self) -> None:
        """Another life of the stream counts anew."""
        self._newest = array("Q", bytes(8 * _SLOTS))

    def _believed(self, subject: str, message: Message | None) -> bool:
        return message is not None and message.sequence >= self._newest[hash(subject) % _SLOTS]

    async def message(self, target: Target, timeout_ms: int) -> Message | None:
        """A key's message, from a follower if that is good enough."""
        message = None
        if self._coherence:
            message = await self._stream.get(target.wire, timeout_ms)
        else:
            await self._stream.info()  # a leader that lost its majority would answer as well
        if not self._believed(target.subject, message):
            message = await self.leader_message(target, timeout_ms)
        if message is not None:
            self.met(target.subject, message.sequence)
        return message

    async def leader_message(self, target: Target, timeout_ms: int) -> Message | None:
        """A key's message as the leader has it. Each attempt is short: without a leader nobody answers."""
        return await self._stream.leader_get(target.subject, min(timeout_ms, QUESTION_MS))

    async def messages(self, targets: Sequence[Target], timeout_ms: int) -> tuple[dict[str, Message], int | None]:
        """Many keys' messages by subject, and the sequence up to which they are one snapshot; None when they are none,
        as they are too large for one answer or the replica that was asked holds none of them."""
        try:
            found, end = await self._snapshot(targets)
        except TooManyResults:
            found, end = {}, None
        if end is None:
            for start in range(0, len(targets), _SIDE_BY_SIDE):
                some = targets[start : start + _SIDE_BY_SIDE]
                answers = await asyncio.gather(*(self.message(target, timeout_ms) for target in some))
                found |= {message.subject: message for message in answers if message is not None}
        for subject, message in found.items():
            self.met(subject, message.sequence)
        return found, end

    async def _snapshot(self, targets: Sequence[Target]) -> tuple[dict[str, Message], int | None]:
        """All keys from one replica, and how far it has come. Where it does not convince, one that has come as far as
        the leader is asked: what that one lacks is absent. None when it does not say so, for it holds none of them."""
        subjects = [target.subject for target in targets]
        end: int | None = None
        until = time.monotonic() + QUESTION_MS / 1000
        while True:
            messages, position = await self._stream.multi_get(subjects)
            if position is None:
                return {}, None
            found = {message.subject: message for message in messages}
            if end is None:
                if self._coherence and all(self._believed(one, found.get(one)) for one in subjects):
                    return found, position
                end = (await self._stream.info()).last_seq
            if position >= end:
                return found, position
            if time.monotonic() > until:
                raise UnavailableError("the followers of the stream lag behind its leader", tier="DISTRIBUTED_KV")
            await asyncio.sleep(_PAUSE_S)

    async def live(self, filter_subject: str, first: int) -> AsyncIterator[Message]:
        """Live entries, none missing that was live at the start; a key that was overwritten is met again, newer.

        A replica holds a prefix of the leader's log. What it said up to the last entry it showed holds for the leader,
        so only the end is in question: a listing ends when a replica has shown an entry that is not older than `end`,
        the leader's last sequence after all pages before, or when the leader has nothing behind the last one.
        """
        last, end = first - 1, 0
        while True:
            shown = last
            async for message in self._stream.live(filter_subject, last + 1):
                last = message.sequence
                if not await self._overtaken(message):
                    yield message
            if end and last > shown and last >= end:
                return
            end = end or (await self._stream.info()).last_seq
            behind = await self._stream.leader_next(filter_subject, last + 1)
            if behind is None:
                return
            last = behind.sequence
            self.met(behind.subject, behind.sequence)
            yield behind

    async def _overtaken(self, message: Message) -> bool:
        """Whether this process knows of a newer entry, which the listing is still to meet, or SQL has."""
        if self._believed(message.subject, message):
            self.met(message.subject, message.sequence)
            return False
        held = await self._stream.leader_get(message.subject)
        return held is None or held.sequence != message.sequence
