"""The machines of one open store, wired together."""

import os
import socket
from dataclasses import dataclass, replace
from typing import Any

from cenote.engine.atomic import Atomic
from cenote.engine.bed import Bed
from cenote.engine.checkpoint import Checkpoints
from cenote.engine.conflict_log import ConflictLog
from cenote.engine.core import Core
from cenote.engine.counter_flush import CounterFlush
from cenote.engine.counters import Counters
from cenote.engine.flusher import Flusher
from cenote.engine.hydration import Hydration
from cenote.engine.hydrator import Hydrator
from cenote.engine.lease import Board, Lease
from cenote.engine.lifecycle import Lifecycle
from cenote.engine.meeting import Meeting
from cenote.engine.mender import volunteer
from cenote.engine.reader import Reader
from cenote.engine.repair import Repair
from cenote.engine.restore import Restorer
from cenote.engine.transfer import Transfer
from cenote.engine.writer import Writer
from cenote.errors import RejectedError
from cenote.model.entry import FORMAT


@dataclass
class Machines:
    """What the verbs of the face call. `flusher` is None in a process that does not flush."""

    core: Core
    writer: Writer
    meeting: Meeting
    conflicts: ConflictLog
    atomic: Atomic
    reader: Reader
    hydrator: Hydrator
    lease: Lease
    board: Board
    flusher: Flusher | None
    counters: Counters
    counter_flush: CounterFlush
    checkpoints: Checkpoints
    lifecycle: Lifecycle
    hydration: Hydration
    bed: Bed
    restorer: Restorer
    transfer: Transfer
    repair: Repair


def build(core: Core) -> Machines:
    """Wire the machines of a started core; nothing runs yet."""
    hydrator = Hydrator(core)
    lease = Lease(core.link, core.names, core.writer_id, in_turns=core.owned)
    board = Board(
        holder=core.writer_id, pid=os.getpid(), host=socket.gethostname(), reads=FORMAT,
        active_max=core.config.flush.active_max,
    )  # fmt: skip
    core.volunteer = volunteer(core, lease)
    flusher = Flusher(core, lease, board) if core.config.flush.enabled else None
    writer = Writer(core, hydrator)
    conflicts = ConflictLog(core, writer)
    meeting = Meeting(core, writer, conflicts)
    lifecycle = Lifecycle(core)
    atomic, checkpoints = Atomic(core, writer, meeting), Checkpoints(core)
    restorer = Restorer(core, writer, atomic, checkpoints, lifecycle)
    return Machines(
        core, writer, meeting, conflicts, atomic, Reader(core, hydrator), hydrator, lease, board, flusher,
        Counters(core), CounterFlush(core), checkpoints, lifecycle, Hydration(hydrator, lifecycle),
        Bed(core, lifecycle), restorer, Transfer(core, checkpoints, restorer), Repair(core, hydrator),
    )  # fmt: skip


def reading_only(machines: Machines, what: str) -> Machines:
    """The same machines for whoever may look at a reserved agent: nobody writes it but cenote itself."""
    nobody: Any = _Nobody(what)
    return replace(machines, writer=nobody, meeting=nobody, atomic=nobody, restorer=nobody)


class _Nobody:
    """Stands where a machine that writes would."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, verb: str) -> Any:
        raise RejectedError(f"this agent is {self._what}, which cenote alone writes", hint="take another agent id")
