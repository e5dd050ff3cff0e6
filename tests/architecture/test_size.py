"""One idea a file, one thought a function: measured, so that growth is a decision and not a drift."""

import sources

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 80
FUNCTION_LINES_USUAL = 40
USUAL_SHARE = 0.95


def test_files_stay_small() -> None:
    long = {m.where: lines for m in sources.modules() if (lines := m.text.count("\n")) > FILE_LINES_MAX}
    assert not long, f"split these, or move an idea out: {long}"


def test_no_function_is_very_long() -> None:
    long = [function for function in sources.functions() if function.lines > FUNCTION_LINES_MAX]
    assert not long


def test_nearly_all_functions_are_short() -> None:
    every = list(sources.functions())
    long = [function for function in every if function.lines > FUNCTION_LINES_USUAL]
    assert every
    assert len(long) <= (1 - USUAL_SHARE) * len(every), f"{len(long)} of {len(every)}: {long}"
