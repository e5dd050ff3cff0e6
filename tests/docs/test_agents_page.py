"""The example of the page on agents runs as it stands, and prints what it says."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"
PRINTS = re.compile(r"^ *print\(.*\)\s+# (?P<shown>.+)$", re.MULTILINE)


def test_the_example_prints_what_it_says() -> None:
    found = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(found[1], str(PAGE), "exec"), {})
    assert printed.getvalue().splitlines() == PRINTS.findall(found[1])
