"""Documents do not drift: what they link to, and what they name, exists."""

import re
from pathlib import Path

import sources

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
TEST_ID = re.compile(r"tests/[\w/]+\.py(?:::(\w+))?")
SOURCE = re.compile(r"`((?:engine|kv|sql|model|embedded|conflict|telemetry|cli|testing)/[\w/]+\.(?:py|sql))`")


def _anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get: lower case, punctuation dropped, spaces as hyphens."""
    headings = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_local_link_resolves() -> None:
    seen, broken = 0, []
    for page, text in sources.pages():
        for link in LINK.findall(FENCE.sub("", text)):
            if re.match(r"[a-z]+:", link):
                continue
            seen += 1
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in _anchors(target)):
                broken.append(f"{page.relative_to(sources.ROOT)}: {link}")
    assert seen
    assert not broken


def test_every_test_named_in_a_page_exists() -> None:
    missing = []
    for page, text in sources.pages():
        for found in TEST_ID.finditer(text):
            path = sources.ROOT / found[0].split("::")[0]
            if not path.is_file() or (found[1] and f"def {found[1]}(" not in path.read_text(encoding="utf-8")):
                missing.append(f"{page.relative_to(sources.ROOT)}: {found[0]}")
    assert not missing


def test_every_source_file_named_in_a_page_exists() -> None:
    seen, missing = 0, []
    for page, text in sources.pages():
        for name in SOURCE.findall(text):
            seen += 1
            if not (sources.SRC / "cenote" / name).is_file():
                missing.append(f"{page.relative_to(sources.ROOT)}: {name}")
    assert seen
    assert not missing


def test_the_allowed_skips_give_reasons_and_exist() -> None:
    for line in (sources.ROOT / "tests" / "allowed_skips.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        test, _, reason = line.partition(" # ")
        assert reason.strip(), f"no reason: {line}"
        assert (sources.ROOT / test.split("::")[0].strip()).exists(), f"no such test: {line}"
