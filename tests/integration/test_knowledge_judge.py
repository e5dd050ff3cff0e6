"""Knowledge at the size that it is meant for, and with an embedder that knows words."""

import ast
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

import cenote
from cenote.repositories.knowledge_entity import NewFact
from cenote.store import Store
from cenote.testing import TestServers

pytestmark = [pytest.mark.judge, pytest.mark.alone]

COUNT, DIMENSIONS, QUERIES = 20_000, 128, 20

QUESTIONS = {
    "compress data in gzip format": "gzip",
    "parse command line arguments and options": "argparse",
    "read and write comma separated values files": "csv",
    "generate pseudo random numbers": "random",
    "send an email over SMTP": "smtplib",
    "calculate mean, median and variance of data": "statistics",
    "wrap paragraphs of text to a given width": "textwrap",
    "arithmetic with exact fractions, rational numbers": "fractions",
    "encode and decode JSON": "json",
    "heap queue, also known as priority queue": "heapq",
}


@pytest.fixture
async def full(cenote_servers: TestServers) -> AsyncIterator[tuple[Store, np.ndarray, list[UUID]]]:
    rows = np.random.default_rng(7).standard_normal((COUNT, DIMENSIONS))
    async with cenote.open(**cenote_servers.fresh()) as store:
        ids: list[UUID] = []
        for start in range(0, COUNT, 5_000):
            facts: list[NewFact] = [
                {"text": f"fact {n}", "metadata": {"n": n, "rare": n % 1000 == 0}, "embedding": rows[n].tolist()}
                for n in range(start, start + 5_000)
            ]
            ids += [one.id for one in await store.knowledge.add_many(facts)]
        yield store, rows / np.linalg.norm(rows, axis=1, keepdims=True), ids


async def test_20_000_facts_are_searched_exactly_and_a_filter_costs_no_results(
    full: tuple[Store, np.ndarray, list[UUID]],
) -> None:
    store, rows, ids = full
    queries = np.random.default_rng(8).standard_normal((QUERIES, DIMENSIONS))
    took: list[float] = []
    for query in queries:
        for where, fits in (({}, np.arange(COUNT)), ({"rare": True}, np.arange(0, COUNT, 1000))):
            began = time.perf_counter()
            found = await store.knowledge.search(embedding=query.tolist(), where=where, mode="vector")
            took.append(time.perf_counter() - began)
            wanted = fits[np.argsort(-(rows[fits] @ query))][:10]
            assert [one.fact.id for one in found] == [ids[n] for n in wanted]  # recall@10 of 1, in the exact order
        few = await store.knowledge.search(embedding=query.tolist(), where={"n": {"in": [3, 14_000, 19_999]}})
        assert {one.fact.id for one in few} == {ids[3], ids[14_000], ids[19_999]}
    print(f"\n{COUNT} facts of {DIMENSIONS} dimensions: median {sorted(took)[len(took) // 2] * 1000:.0f} ms a search")


def documented() -> list[NewFact]:
    """The first paragraphs of what the modules of the standard library say about themselves."""
    facts: list[NewFact] = []
    library = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names):
        for path in (library / f"{name}.py", library / name / "__init__.py"):
            if path.exists():
                said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8", errors="replace")))
                if said:
                    facts.append({"text": f"{name}: {said[:600]}", "metadata": {"module": name}})
    return facts


async def test_questions_about_the_standard_library_find_their_module(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh(knowledge__embedder="wordllama")) as store:
        await store.knowledge.add_many(documented())
        await store.knowledge.embedded(timeout=60)
        right: Counter[bool] = Counter()
        for question, module in QUESTIONS.items():
            found = await store.knowledge.search(question, limit=3)
            first = {one.fact.metadata["module"] for one in found}
            right[module in first] += 1
            print(question, sorted(first))
        assert right[True] >= 8
