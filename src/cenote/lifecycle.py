"""The phases of an agent's life, and what leads from one to another: one table, no input, no output.

Nobody who reads or writes state asks for the phase: a put to an agent that sleeps is an ordinary put. What a tier holds
is a fact; the phase is what was done on purpose.
"""

from enum import StrEnum
from typing import Final

from cenote.errors import LifecycleError


class Phase(StrEnum):
    """Where an agent stands."""

    COLD = "cold"
    """KV holds nothing of it: it was never there, or was put aside."""
    HYDRATING = "hydrating"
    """Somebody is bringing it in."""
    ACTIVE = "active"
    """KV holds keys of it."""
    FLUSHING = "flushing"
    """Somebody waits for PostgreSQL on its behalf, to put it aside."""
    EXPIRED = "expired"
    """Nothing was written or read for `state.ttl_s`: all of it is in PostgreSQL, none in KV."""


class Event(StrEnum):
    """What happens to an agent. The first line is done on purpose, the second is how it ended."""

    HYDRATE, FLUSH, SLEEP, EXPIRE, WAKE = "hydrate", "flush", "sleep", "expire", "wake"
    HYDRATED, FLUSHED, SLEPT, EXPIRED, FAILED = "hydrated", "flushed", "slept", "expired", "failed"
    CHECKPOINT, RESTORE, FORK = "checkpoint", "restore", "fork"


_AT_REST: Final = (Phase.COLD, Phase.ACTIVE, Phase.EXPIRED)
TABLE: Final[dict[tuple[Phase, Event], Phase]] = {
    **{(phase, Event.HYDRATE): Phase.HYDRATING for phase in _AT_REST},
    **{(phase, Event.FLUSH): Phase.FLUSHING for phase in _AT_REST},
    **{(phase, Event.SLEEP): Phase.FLUSHING for phase in _AT_REST},
    **{(phase, Event.EXPIRE): Phase.FLUSHING for phase in (Phase.COLD, Phase.ACTIVE)},
    **{(phase, Event.WAKE): Phase.ACTIVE for phase in _AT_REST},
    **{(phase, event): phase for phase in Phase for event in (Event.CHECKPOINT, Event.FORK)},
    **{(phase, Event.RESTORE): Phase.ACTIVE for phase in _AT_REST},
    (Phase.HYDRATING, Event.HYDRATED): Phase.ACTIVE,
    (Phase.HYDRATING, Event.FAILED): Phase.ACTIVE,
    (Phase.FLUSHING, Event.FLUSHED): Phase.ACTIVE,
    (Phase.FLUSHING, Event.SLEPT): Phase.COLD,
    (Phase.FLUSHING, Event.EXPIRED): Phase.EXPIRED,
    (Phase.FLUSHING, Event.FAILED): Phase.ACTIVE,
}
"""What is not in it is illegal. A failed hydration leaves what it has brought, a failed flush what is dirty."""


def legal(phase: Phase) -> list[Event]:
    """What may happen in a phase."""
    return [event for event in Event if (phase, event) in TABLE]


def after(phase: Phase, event: Event) -> Phase:
    """The next phase. LifecycleError, which names what may happen, for what may not."""
    found = TABLE.get((phase, event))
    if found is None:
        raise illegal(phase, event)
    return found


def illegal(phase: Phase, event: Event) -> LifecycleError:
    """The error that says so."""
    return LifecycleError(f"{event}: not while an agent is {phase}", hint=f"legal now: {', '.join(legal(phase))}")


def derived(recorded: Phase, *, at_work: bool, held: bool) -> Phase:
    """The phase of an agent now.

    Args:
        recorded: as it was written down last.
        at_work: whether the lease of whoever wrote that down lives. If not he died in the midst, and only what the
            tiers hold counts.
        held: whether KV holds anything of the agent.
    """
    if recorded in (Phase.HYDRATING, Phase.FLUSHING):
        if at_work:
            return recorded
        return Phase.ACTIVE if held else Phase.COLD
    if held:
        return Phase.ACTIVE  # whoever writes or reads tells nobody
    return Phase.COLD if recorded is Phase.ACTIVE else recorded
