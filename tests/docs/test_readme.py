"""The quick start of the README is run as it stands, and prints what it says it prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"^\s*print\(.*\)\s+# (?P<shown>.+)$", re.MULTILINE)


def test_the_quick_start_runs(tmp_path: Path) -> None:
    found = BLOCK.search(README.read_text(encoding="utf-8"))
    assert found is not None
    script = tmp_path / "quickstart.py"
    script.write_text(found[1], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | {"CENOTE_EMBEDDED__DATA_DIR": ":temporary:"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    for shown in PRINTS.findall(found[1]):
        assert shown in done.stdout.splitlines()
