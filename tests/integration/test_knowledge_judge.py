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
from cenote.repositories.knowledge_index import IndexUpkeep
from cenote.sql.nearness import NearTables
from cenote.store import Store
from cenote.testing import TestServers
from witness import another

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


async def test_an_index_on_20_000_facts_finds_nearly_what_exact_search_finds(cenote_servers: TestServers) -> None:
    dice = np.random.default_rng(9)
    topics = dice.standard_normal((200, DIMENSIONS))  # embeddings of texts lie around topics

    def of_a_topic(count: int) -> np.ndarray:
        return topics[dice.integers(0, len(topics), count)] + 0.7 * dice.standard_normal((count, DIMENSIONS))

    rows, queries = of_a_topic(COUNT), of_a_topic(QUERIES)
    settings = cenote_servers.fresh(knowledge__vector_index_rows=COUNT, flush__enabled=False)
    async with cenote.open(**settings) as store, another(store, knowledge__vector_index="off") as exact:
        for start in range(0, COUNT, 5_000):
            facts: list[NewFact] = [
                {"text": "a fact", "metadata": {"half": n % 2, "5 %": n % 20, "rare": n % 1000}, "embedding": row}
                for n, row in enumerate(rows[start : start + 5_000].tolist(), start)
            ]
            await store.knowledge.add_many(facts)
        server = await NearTables(store._core.db).server()
        upkeep, until = IndexUpkeep(store._core), time.monotonic() + 120
        while (state := await store.knowledge.vector_index()).back_end == "exact" and server.why_not is None:
            assert time.monotonic() < until, state
            await upkeep.tend()
        assert server.why_not is not None or state.indexed == COUNT
        store.knowledge._index._known.clear()
        for where in ({}, {"half": 1}, {"5 %": 7}, {"rare": 3}):
            recall: list[float] = []
            took: list[list[float]] = [[], []]
            for query in queries.tolist():
                found: list[set[UUID]] = []
                for one, times in zip((store, exact), took, strict=True):
                    began = time.perf_counter()
                    hits = await one.knowledge.search(embedding=query, where=where)
                    times.append(time.perf_counter() - began)
                    found.append({hit.fact.id for hit in hits})
                assert len(found[0]) == len(found[1]) == 10
                recall.append(len(found[0] & found[1]) / 10)
            index_ms, exact_ms = (sorted(times)[len(times) // 2] * 1000 for times in took)
            mean = sum(recall) / len(recall)
            print(f"\n{state.back_end} {where}: recall@10 {mean:.3f}, {index_ms:.1f} ms; exact {exact_ms:.1f} ms")
            assert mean >= 0.95


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
