"""The models hold with their rules, and each rule is needed: without it a story is found (printed by -s)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the files of this folder know each other by their plain names

from cases import CASES, NEEDED_IN, PROPOSED, RULES, UNNEEDED
from search import Outcome, explore

USUAL = [name for name, case in CASES.items() if case.usual]
LONG = [name for name, case in CASES.items() if not case.usual]
QUICK = {"fence", "1", "6", "16", "F-mark", "9 own", "21 mark", "8"}


def _holds(name: str) -> None:
    case = CASES[name]
    outcome = explore(case.build(case.on))
    print(f"{name}: {outcome.told()}")
    assert outcome.violation is None, outcome.told()
    assert outcome.complete
    unseen = [words for words in case.must if not outcome.saw(words)]
    assert not unseen, f"it holds, but this never happened: {unseen}"


def _story(rule: str) -> Outcome:
    case = CASES[NEEDED_IN[rule]]
    assert rule in case.on, "a rule that is off anyway shows nothing"
    outcome = explore(case.build(case.on - {rule}))
    print(f"without {rule} ({RULES[rule]}), {NEEDED_IN[rule]}: {outcome.told()}")
    return outcome


@pytest.mark.parametrize("name", USUAL)
def test_a_small_scenario_holds(name: str) -> None:
    _holds(name)


@pytest.mark.judge
@pytest.mark.parametrize("name", LONG)
def test_a_scenario_holds(name: str) -> None:
    _holds(name)


@pytest.mark.parametrize("rule", sorted(QUICK))
def test_a_rule_is_needed(rule: str) -> None:
    assert _story(rule).violation


@pytest.mark.judge
@pytest.mark.parametrize("rule", sorted(set(NEEDED_IN) - QUICK))
def test_a_switch_is_needed(rule: str) -> None:
    assert _story(rule).violation


def test_every_switch_is_needed_somewhere_or_known_not_to_be() -> None:
    assert set(NEEDED_IN) | set(UNNEEDED) == set(RULES)
    assert not set(NEEDED_IN) & set(UNNEEDED)
    assert set(RULES) >= PROPOSED


def test_a_story_is_one_of_the_shortest_and_reads_as_sentences() -> None:
    story = _story("16").story
    assert story[0].endswith("but the answer is lost")
    assert len(story) <= 3
