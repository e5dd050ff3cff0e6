"""What happened, written down so that kill -9 cannot unwrite it, and the checker that judges it.

One line per event, one write(2) each, appended: an operation's beginning (its intent) before anything is sent, its end
only after the call returned. What began and never ended may or may not have happened, at any later time.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

FOREVER = float("inf")


class Op(NamedTuple):
    """One operation on one key. A write's `value` is what it wrote, None = delete; a read's is what it returned,
    None = absent. `end` is FOREVER while nobody knows whether it took effect. A write is `lost` when it was
    acknowledged and a rewind of the servers may have undone it: it is seen or not, but never after what came later."""

    kind: str
    key: str
    value: Any
    begin: float
    end: float
    session: str
    lost: bool = False


class Journal:
    """Appends to a file; any number of processes may share it."""

    def __init__(self, path: Path, session: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._session = session
        self._numbers = 0

    def begin(self, kind: str, key: str, value: Any = None) -> int:
        """Note an intent; returns what `end` needs."""
        self._numbers += 1
        self._line(n=self._numbers, kind=kind, key=key, value=value)
        return self._numbers

    def end(self, number: int, value: Any = None) -> None:
        """The call returned: the write is acknowledged, or the read gave `value`."""
        self._line(n=number, value=value)

    def refused(self, number: int) -> None:
        """The call proved that nothing happened."""
        self._line(n=number, refused=True)

    def _line(self, **event: Any) -> None:
        event |= {"s": self._session, "t": time.monotonic()}  # one clock for all processes of a machine
        os.write(self._file, json.dumps(event).encode() + b"\n")


def read(path: Path) -> list[Op]:
    """The operations of a journal in order of their beginning; a torn last line is ignored."""
    begun: dict[tuple[str, int], Op] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        event = json.loads(line)
        name = (event["s"], event["n"])
        if "kind" in event:
            begun[name] = Op(event["kind"], event["key"], event["value"], event["t"], FOREVER, event["s"])
        elif "refused" in event:
            del begun[name]
        else:
            op = begun[name]
            begun[name] = op._replace(end=event["t"], value=event["value"] if op.kind == "read" else op.value)
    return list(begun.values())


def acked(history: Iterable[Op]) -> int:
    """How many writes were acknowledged: a history without any proves nothing."""
    return sum(op.kind == "write" and op.end < FOREVER for op in history)


def violations(history: Iterable[Op], *, lag_s: float = 0.0, exact: tuple[str, ...] = ()) -> list[str]:
    """Every read that no order of the writes can explain, with the class of the error. Written values are unique.

    Memory caches may be `lag_s` behind what *other* processes wrote (a session is "process.task"), those named in
    `exact` not at all.

    A write took effect at one moment between its beginning and its end; one that never ended, at any later moment or
    never. So a write W is certainly overtaken at time t when another write began after W's end and ended before t.
    """
    by_key: dict[str, list[Op]] = {}
    for op in history:
        by_key.setdefault(op.key, []).append(op)

    def known(write: Op, one: Op) -> bool:
        """Whether the write was over, and this read's process must have heard of it."""
        process = one.session.partition(".")[0]
        at_once = process in exact or process == write.session.partition(".")[0]
        return not write.lost and write.end < one.begin - (0.0 if at_once else lag_s)

    return [found for ops in by_key.values() for found in _of_key(ops, known)]


def _of_key(ops: list[Op], known: Callable[[Op, Op], bool]) -> Iterable[str]:
    writes = [op for op in ops if op.kind == "write"]
    reads = sorted((op for op in ops if op.kind == "read" and op.end < FOREVER), key=lambda op: op.begin)
    source = {json.dumps(write.value): write for write in writes if write.value is not None}
    newest_seen: dict[str, Op] = {}
    for one in reads:
        if one.value is None:
            puts = [w for w in writes if w.value is not None and known(w, one)]
            deletes = [d for d in writes if d.value is None and d.begin < one.end]
            if any(all(d.end < put.begin for d in deletes) for put in puts):
                yield f"lost: {one} although {puts[-1]}"
            continue
        write = source.get(json.dumps(one.value))
        if write is None or write.begin > one.end:
            yield f"phantom: {one}"
            continue
        over = [w for w in writes if write.end < w.begin and known(w, one)]
        if over:
            yield f"{'resurrection' if over[-1].value is None else 'stale'}: {one} although {over[-1]}"
        before = newest_seen.get(one.session)
        if before is not None and write.end < before.begin:
            yield f"non-monotonic: {one} after {before}"
        newest_seen[one.session] = write
