"""Run scenarios and tell what was found: `python tests/model/run.py [scenario ...] [-switch ...] [+switch ...]`.

Without arguments: every scenario with its rules. `-switch` alone: the scenario that shows what the rule is for.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the files of this folder, wherever one stands

from cases import CASES, NEEDED_IN, PROPOSED, RULES
from search import explore


def main(words: list[str]) -> int:
    """The number of scenarios that broke."""
    off = {word[1:] for word in words if word.startswith("-")}
    more = {word[1:] for word in words if word.startswith("+")}
    names = [word for word in words if word[0] not in "-+"]
    if unknown := (off | more) - set(RULES) | set(names) - set(CASES):
        switches = "\n".join(f"  {rule:13} {text}{' (proposed)' * (rule in PROPOSED)}" for rule, text in RULES.items())
        print(f"unknown: {unknown}\nscenarios: {', '.join(CASES)}\nswitches:\n{switches}")
        return 64
    broken = 0
    for name in names or ([NEEDED_IN[rule] for rule in off if rule in NEEDED_IN] if off else list(CASES)):
        case = CASES[name]
        outcome = explore(case.build((case.on | more) - off))
        broken += outcome.violation is not None
        print(f"{name} ({case.about}): {outcome.told()}", flush=True)
    return broken


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 64))
