"""Which answer belongs to which request: one wildcard inbox, one dict, one sweeper for all timeouts.

nats-py makes a subscription wake-up, a random name, a timer and a message object for each request; here a
request costs one future and one dict entry. The sweeper is one timer at the next deadline: where every request is
answered it fires once in a timeout, however many requests there are.
"""

import asyncio
import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from cenote import limits
from cenote.errors import CenoteError
from cenote.kv.errors import AnswerLost, NoResponders, NotSent

_STATUS = b"NATS/1.0 "  # a header that begins so is a status of the server, "NATS/1.0\r\n" begins a message
_NO_RESPONDERS = b"NATS/1.0 503"
_LATE_S = 0.05  # how late a timeout may be


class Reply(msgspec.Struct, frozen=True, gc=False):
    """An answer: header is b"" or the block from "NATS/1.0" to the blank line."""

    header: bytes
    payload: bytes
    generation: int


class _Gathering(NamedTuple):
    future: asyncio.Future[list[Reply]]
    deadline: float
    parts: list[Reply]


class Multiplexer:
    """Every future handed out ends: by its answer, by `sweep` or by `fail_all`."""

    def __init__(self, inbox: str, loop: asyncio.AbstractEventLoop, on_timeout: Callable[[], None]) -> None:
        self.prefix = f" {inbox}.".encode()
        self.generation = 0
        self._at = len(inbox) + 1
        self._loop = loop
        self._on_timeout = on_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._count = 0
        self.heard = True
        """Whether anything was answered since the last timeout."""
        self._waiting: dict[bytes, tuple[asyncio.Future[Reply], float]] = {}
        self._gathering: dict[bytes, _Gathering] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._gathering)

    def token(self) -> bytes:
        """The last part of a fresh reply subject; `prefix` goes before it. NotSent while too many wait for answers."""
        if len(self._waiting) + len(self._gathering) >= limits.IN_FLIGHT_MAX:
            raise NotSent("too many requests in flight", tier="DISTRIBUTED_KV")
        self._count += 1
        return b"%x" % self._count

    def wait(self, token: bytes, timeout_ms: int) -> asyncio.Future[Reply]:
        """The future answer of a request just sent with this token."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        deadline = self._loop.time() + timeout_ms / 1000
        self._waiting[token] = (future, deadline)
        if deadline < self._due:
            self._sweep_at(deadline)
        return future

    def gather(self, token: bytes, timeout_ms: int) -> asyncio.Future[list[Reply]]:
        """All answers of a request just sent, up to and with the server's closing status."""
        future: asyncio.Future[list[Reply]] = self._loop.create_future()
        deadline = self._loop.time() + timeout_ms / 1000
        self._gathering[token] = _Gathering(future, deadline, [])
        if deadline < self._due:
            self._sweep_at(deadline)
        return future

    def on_message(self, subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        self.heard = True
        token = subject[self._at :]
        entry = self._waiting.pop(token, None)
        if entry is None:
            self._on_part(token, header, payload)
        elif entry[0].done():
            pass  # the caller has gone
        elif not payload and header.startswith(_NO_RESPONDERS):
            entry[0].set_exception(_nobody())
        else:
            entry[0].set_result(Reply(header, payload, self.generation))

    def _on_part(self, token: bytes, header: bytes, payload: bytes) -> None:
        entry = self._gathering.get(token)
        if entry is None:
            return
        entry.parts.append(Reply(header, payload, self.generation))
        if not header.startswith(_STATUS):
            return
        del self._gathering[token]
        if entry.future.done():
            return
        if header.startswith(_NO_RESPONDERS):
            entry.future.set_exception(_nobody())
        else:
            entry.future.set_result(entry.parts)

    def _sweep_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = when
        self._timer = self._loop.call_at(when, self._sweep)

    def _sweep(self) -> None:
        """Fail what waits beyond its deadline."""
        now = self._loop.time()
        late = [token for token, (_, deadline) in self._waiting.items() if deadline <= now]
        for token in late:
            _fail(self._waiting.pop(token)[0], "no answer in time")
        parts = [token for token, entry in self._gathering.items() if entry.deadline <= now]
        for token in parts:
            _fail(self._gathering.pop(token).future, "no complete answer in time")
        self._timer, self._due = None, math.inf
        left = [deadline for _, deadline in self._waiting.values()]
        left += [entry.deadline for entry in self._gathering.values()]
        if left:
            self._sweep_at(max(min(left), now + _LATE_S))
        if late or parts:
            self._on_timeout()

    def fail_all(self, why: str) -> None:
        """The connection is gone: no answer can come any more."""
        waiting, self._waiting = self._waiting, {}
        gathering, self._gathering = self._gathering, {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._due = None, math.inf
        for future, _ in waiting.values():
            _fail(future, why)
        for entry in gathering.values():
            _fail(entry.future, why)


def _fail(future: asyncio.Future[Reply] | asyncio.Future[list[Reply]], why: str) -> None:
    if not future.done():
        future.set_exception(AnswerLost(f"the answer was lost: {why}", tier="DISTRIBUTED_KV"))


def _nobody() -> CenoteError:
    return NoResponders("nobody serves this request now", tier="DISTRIBUTED_KV")
