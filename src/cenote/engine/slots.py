"""The leases of those who flush beside the primary, and their boards added to its own (I8; flow rule 19)."""

from dataclasses import replace

from cenote.engine.core import Core
from cenote.engine.lease import COUNTED, PRIMARY_KEY, Board, Lease
from cenote.kv.link import Link
from cenote.naming import Names

_SUMMED = (*COUNTED, "violations")
_HIGHEST = ("lag_ms_p50", "lag_ms_p95", "lag_ms_p99")


def slots(link: Link, names: Names, holder: str, count: int) -> list[Lease]:
    """Slots 2 … `count`: the first is the primary's own lease."""
    return [Lease(link, names, holder, f"{PRIMARY_KEY}.{number}") for number in range(2, count + 1)]


async def beside(link: Link, names: Names, count: int) -> list[Board]:
    """The boards of those slots."""
    boards = [await slot.read() for slot in slots(link, names, "", count)]
    return [board for board in boards if board is not None]


async def together(core: Core, primary: Board) -> Board:
    """The primary's board with what the flushers beside it have done. Asks for as many slots as this process or the
    primary was told of; none where flushers work alone."""
    count = max(core.config.flush.active_max, primary.active_max)
    return primary if count == 1 else added(primary, await beside(core.link, core.names, count), core.now_ms())


def added(primary: Board, boards: list[Board], now_ms: int) -> Board:
    """The sum of what was counted; of lags, which cannot be added, the highest, which is none too good. `clean_ms` is
    the primary's alone: it asks whether anybody holds anything. A process that went on to hold another lease has
    counted on there, and counts once."""
    total, known = replace(primary), {primary.holder}
    spent_ms = (primary.avg_flush_ms or 0.0) * primary.commits
    for board in boards:
        if not board.holder or board.holder in known or not board.alive(now_ms):
            continue
        known.add(board.holder)
        for name in _SUMMED:
            setattr(total, name, getattr(total, name) + getattr(board, name))
        for name in _HIGHEST:
            setattr(total, name, max((getattr(total, name) or 0.0, getattr(board, name) or 0.0)) or None)
        total.windows = {name: _worse(total.windows.get(name), told) for name, told in board.windows.items()}
        spent_ms += (board.avg_flush_ms or 0.0) * board.commits
        total.committed_ms = max(total.committed_ms, board.committed_ms)
        down = [one.sql_down_since_ms for one in (total, board) if one.sql_down_since_ms is not None]
        total.sql_down_since_ms = min(down, default=None)
    total.avg_flush_ms = round(spent_ms / total.commits, 3) if total.commits else None
    return total


def _worse(one: list[float | None] | None, other: list[float | None]) -> list[float | None]:
    if one is None:
        return other
    lags = 3  # the fields of a `lag.Window` that cannot be added come first
    highest = [
        max(both, default=None, key=lambda lag: lag or 0.0) for both in zip(one[:lags], other[:lags], strict=True)
    ]
    return [*highest, *((a or 0) + (b or 0) for a, b in zip(one[lags:], other[lags:], strict=False))]
