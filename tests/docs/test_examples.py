"""Every example, of the pages and of the directory, runs as it stands and prints what its comments say."""

import re
import runpy
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from cenote.testing import TestServers

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "```python" in page.read_text(encoding="utf-8")]
PRINTS = re.compile(r"^ *print\(.*\)  +# (?P<shown>.+)$", re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES + PAGES, ids=lambda path: path.name)
def test_an_example_prints_what_it_says(
    example: Path, cenote_servers: TestServers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fresh = cenote_servers.fresh()
    monkeypatch.setenv("CENOTE_EMBEDDED__DATA_DIR", str(fresh["data_dir"]))
    monkeypatch.setenv("CENOTE_NAMESPACE", fresh["namespace"])
    source = example.read_text(encoding="utf-8")
    if example.suffix == ".md":
        blocks = re.findall(r"^```python\n(.*?)^```", source, re.MULTILINE | re.DOTALL)
        source = next(block for block in blocks if PRINTS.search(block))
    script = tmp_path / "example.py"
    script.write_text(source, encoding="utf-8")
    printed = StringIO()
    with redirect_stdout(printed):
        runpy.run_path(str(script), run_name="__main__")
    assert len(PRINTS.findall(source)) == source.count("print(") > 0, "a line that prints says what"
    assert PRINTS.findall(source) == printed.getvalue().splitlines()
