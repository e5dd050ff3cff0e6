"""The table of an agent's life: total, without a dead end, and every refusal names what is legal."""

import pytest

from cenote.errors import LifecycleError
from cenote.lifecycle import TABLE, Event, Phase, after, derived, legal

AT_WORK = {Phase.HYDRATING, Phase.FLUSHING}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_each_pair_is_a_step_or_an_error_that_names_the_legal_ones(phase: Phase, event: Event) -> None:
    if event in legal(phase):
        assert after(phase, event) is TABLE[phase, event]
        return
    with pytest.raises(LifecycleError) as refused:
        after(phase, event)
    assert all(str(one) in str(refused.value) for one in legal(phase))


def test_every_phase_can_be_reached_from_every_other() -> None:
    for begin in Phase:
        seen, wave = {begin}, {begin}
        while wave:
            wave = {TABLE[phase, event] for phase in wave for event in legal(phase)} - seen
            seen |= wave
        assert seen == set(Phase)


def test_nobody_begins_a_second_work_and_every_work_may_fail() -> None:
    begins = {Event.HYDRATE, Event.FLUSH, Event.SLEEP, Event.EXPIRE, Event.WAKE, Event.RESTORE}
    for phase in AT_WORK:
        assert begins.isdisjoint(legal(phase))
        assert after(phase, Event.FAILED) is Phase.ACTIVE


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("recorded", Phase)
def test_what_the_tiers_hold_outranks_what_was_written_down(recorded: Phase, held: bool) -> None:
    alive, dead = (derived(recorded, at_work=one, held=held) for one in (True, False))
    assert dead not in AT_WORK
    assert (dead is Phase.ACTIVE) == held
    assert alive is (recorded if recorded in AT_WORK else dead)
    if recorded is Phase.EXPIRED and not held:
        assert dead is Phase.EXPIRED
