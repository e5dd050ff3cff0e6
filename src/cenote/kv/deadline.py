"""Try again under a deadline, but only after a proof that nothing was accepted (flow rule 16).

A question may be asked again after silence, too: a cluster that has no leader leaves API requests without an answer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from cenote.errors import CenoteError, UnavailableError
from cenote.kv.errors import AnswerLost, JsUnavailable, NoResponders, NotSent
from cenote.kv.link import Link
from cenote.retry import Backoff, Policy

T = TypeVar("T")

REFUSED = (NotSent, NoResponders, JsUnavailable)
"""Not a byte left, nobody took it, or JetStream said it could not now: the same bytes may be sent again."""


QUESTION_MS = 1_000
"""After so much silence a question is asked once more: a leader answers within milliseconds."""


_WAIT_MS_MAX = 1_000  # an election takes 4 to 8 s; a longer wait would only add to it, or give up before its end


class _Policy(NamedTuple):
    base_ms: float = 20
    wait_ms_max: float = _WAIT_MS_MAX


def patient(retry: Policy) -> Policy:
    """The waits between attempts at KV: as configured, but short enough to be there when a leader is."""
    return _Policy(retry.base_ms, min(retry.wait_ms_max, _WAIT_MS_MAX))


async def ask(link: Link, subject: str, body: dict[str, Any] | None, timeout_ms: int) -> dict[str, Any]:
    """An API request that may be made twice, made anew after each second of silence; the first answer counts.

    Raises:
        What `Link.api` raises.
    """
    until = time.monotonic() + timeout_ms / 1000
    asked: set[asyncio.Task[dict[str, Any]]] = set()
    try:
        while True:
            left_ms = max(1, int((until - time.monotonic()) * 1000))
            asked.add(asyncio.create_task(link.api(subject, body, left_ms)))
            done, _ = await asyncio.wait(
                asked, timeout=min(QUESTION_MS, left_ms + 100) / 1000, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return done.pop().result()
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def with_deadline(
    link: Link,
    call: Callable[[], Awaitable[T]],
    deadline_ms: float,
    *,
    generation: int | None = None,
    question: bool = False,
) -> T:
    """`call()`, again with full jitter while it is refused and the deadline is not over.

    generation: give it when the call rests on a sequence that was read under this connection; then a
    reconnect ends the tries, for the same number may name another entry (F-conn).

    question: the call changes nothing, or nothing the second time, so silence is no reason to stop.

    Raises:
        The last refusal, with `.attempts` and `.elapsed_ms`; anything else at once.
    """
    backoff = Backoff(_Policy(), deadline_ms)
    while True:
        try:
            return await call()
        except CenoteError as error:
            moved = generation is not None and link.generation != generation
            silent = question and isinstance(error, AnswerLost)
            if moved or not (silent or isinstance(error, REFUSED)):
                raise
            await backoff.pause(UnavailableError(str(error), tier="DISTRIBUTED_KV") if silent else error)
