"""Try again under a deadline, but only after a proof that nothing was accepted (flow rule 16)."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from cenote.errors import CenoteError
from cenote.kv.errors import JsUnavailable, NoResponders, NotSent
from cenote.kv.link import Link
from cenote.retry import Backoff

T = TypeVar("T")

REFUSED = (NotSent, NoResponders, JsUnavailable)
"""Not a byte left, nobody took it, or JetStream said it could not now: the same bytes may be sent again."""


class _Policy(NamedTuple):
    base_ms: float = 20
    wait_ms_max: float = 1000  # an election takes 4 to 6 s; a longer wait would only add to it


async def with_deadline(
    link: Link, call: Callable[[], Awaitable[T]], deadline_ms: float, *, generation: int | None = None
) -> T:
    """`call()`, again with full jitter while it is refused and the deadline is not over.

    generation: give it when the call rests on a sequence that was read under this connection; then a
    reconnect ends the tries, for the same number may name another entry (F-conn).

    Raises:
        The last refusal, with `.attempts` and `.elapsed_ms`; anything else at once.
    """
    backoff = Backoff(_Policy(), deadline_ms)
    while True:
        try:
            return await call()
        except CenoteError as error:
            moved = generation is not None and link.generation != generation
            if moved or not isinstance(error, REFUSED):
                raise
            await backoff.pause(error)
