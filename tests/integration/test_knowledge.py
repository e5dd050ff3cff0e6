"""Knowledge: what the verbs promise, on real servers."""

import asyncio
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from cli_run import Cli

import cenote
from cenote import limits
from cenote.repositories import knowledge_embedder
from cenote.store import Store
from cenote.testing import TestServers
from witness import another

HOSTILE = ["'; DROP TABLE knowledge.facts; --", "a\x00b", "\ud800", "\x1a0000", "% _ \\ {knowledge} $1 AND true", "水"]


class Letters:
    """Texts are near when they have the same letters. It can be told to fail."""

    dimensions = 26

    def __init__(self, name: str) -> None:
        self.name = name
        self.fails = 0
        self.seen: list[str] = []

    def embed(self, texts: list[str], /) -> Sequence[Sequence[float]]:
        if self.fails:
            self.fails -= 1
            raise ConnectionError("the model is away")
        self.seen += texts
        return [[text.lower().count(chr(97 + n)) + 0.01 for n in range(26)] for text in texts]


@pytest.fixture
def letters() -> Letters:
    embedder = Letters(f"letters-{uuid4()}")
    cenote.register_embedder(embedder)
    return embedder


def at(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


async def texts(store: Store, *args: Any, **options: Any) -> list[str]:
    return [one.fact.text for one in await store.knowledge.search(*args, **options)]


async def test_a_fact_comes_back_and_is_found_by_words_vector_and_both(cenote_store: Store) -> None:
    knowledge = cenote_store.knowledge
    first = await knowledge.add("the cave is deep", metadata={"tags": {1, 2}, "n": 1.5}, embedding=at(0))
    second = await knowledge.add("the lake is deep and cold", embedding=at(30))
    third = await knowledge.add("nothing to see", embedding=at(60))
    assert await knowledge.find(first.id) == await knowledge.get(first.id) == first
    assert (first.metadata, first.embedded, first.version) == ({"tags": {1, 2}, "n": 1.5}, True, 1)
    assert await texts(cenote_store, "Deep lake", mode="text") == [second.text]
    assert await texts(cenote_store, "cave or lake", mode="text") == [first.text, second.text]
    nearest = await knowledge.search(embedding=at(50), mode="vector")
    assert [one.fact for one in nearest] == [third, second, first]
    assert nearest[0].score == pytest.approx(math.cos(math.radians(10)), abs=1e-6)
    hybrid = await knowledge.search("deep cave", embedding=at(55))
    assert [one.fact.text for one in hybrid] == [first.text, third.text, second.text]
    assert hybrid[0].score == pytest.approx(1 / 63 + 1 / 61)  # third by vector, first by text
    assert await texts(cenote_store, embedding=at(0), limit=1) == [first.text]
    assert await texts(cenote_store, embedding=at(0), namespace="elsewhere") == []


async def test_filters_never_cost_results(cenote_store: Store) -> None:
    knowledge = cenote_store.knowledge
    await knowledge.add_many(
        [
            {"text": f"fact {n}", "metadata": {"n": n, "deep": {"kind": "ab"[n % 2]}}, "embedding": at(n / 10)}
            for n in range(400)
        ]
    )
    where = {"n": {"gte": 390}, "deep.kind": "b"}
    expected = [f"fact {n}" for n in (391, 393, 395, 397, 399)]
    assert await texts(cenote_store, embedding=at(0), where=where, mode="vector") == expected
    assert sorted(await texts(cenote_store, "fact", where=where, mode="text")) == expected
    assert await texts(cenote_store, "fact", embedding=at(0), where={"n": {"in": [5, 6]}}) == ["fact 5", "fact 6"]
    page = await knowledge.list(limit=3, where=where)
    rest = await knowledge.list(limit=3, where=where, cursor=page.next)
    assert sorted(one.text for one in [*page, *rest]) == expected
    assert rest.next is None
    for cursor in (page.next[:-2] + "xx", "", "x"):  # type: ignore[index]  # there is a next page
        with pytest.raises(cenote.NotFoundError, match="no such page"):
            await knowledge.list(limit=3, where=where, cursor=cursor)
    with pytest.raises(cenote.NotFoundError, match="no such page"):
        await knowledge.list(limit=3, cursor=page.next)
    for verb in (knowledge.search("x", where={"n": {"regex": "."}}), knowledge.forget(where={"n": {"$gt": 1}})):
        with pytest.raises(cenote.RejectedError, match=r"regex|\$gt"):
            await verb
    assert await knowledge.forget(where={"n": {"lt": 390}}) == 390
    assert await texts(cenote_store, embedding=at(0), limit=1) == ["fact 390"]
    assert await knowledge.forget() == 10
    assert await texts(cenote_store, embedding=at(0)) == []


async def test_a_superseded_fact_is_history(cenote_store: Store) -> None:
    knowledge = cenote_store.knowledge
    old = await knowledge.add("40 m deep", metadata={"cave": 7}, embedding=at(0))
    new = await knowledge.supersede(old.id, "42 m deep", embedding=at(1))
    newest = await knowledge.supersede(new.id, "43 m deep", new_id=uuid4())
    assert newest.metadata == {"cave": 7}
    assert await knowledge.supersede(new.id, "43 m deep", new_id=newest.id) == newest  # tried again
    assert [one.text for one in await knowledge.history(new.id)] == ["40 m deep", "42 m deep", "43 m deep"]
    assert (await knowledge.find(old.id)).superseded_by == new.id
    assert await texts(cenote_store, "deep", mode="text") == ["43 m deep"]
    assert await texts(cenote_store, embedding=at(0), mode="vector") == []  # the newest has none yet
    with pytest.raises(cenote.ConflictError, match="superseded already"):
        await knowledge.supersede(old.id, "41 m deep")
    for verb in (knowledge.supersede(uuid4(), "x"), knowledge.history(uuid4()), knowledge.find(uuid4())):
        with pytest.raises(cenote.NotFoundError, match="no such fact"):
            await verb
    other = await knowledge.add("dry")
    with pytest.raises(cenote.AlreadyExistsError):
        await knowledge.supersede(newest.id, "wet", new_id=other.id)


async def test_saving_updating_deleting_and_adding_again(cenote_store: Store) -> None:
    knowledge = cenote_store.knowledge
    added = await knowledge.add("a", embedding=at(0), fact_id=uuid4())
    assert await knowledge.add("a", embedding=at(0), fact_id=added.id) == added
    with pytest.raises(cenote.AlreadyExistsError, match=str(added.id)):
        await knowledge.add("b", fact_id=added.id)
    saved = await knowledge.save(cenote.Fact(id=added.id, text="a", metadata={"k": 1}))
    assert (saved.embedded, saved.version, saved.created_at) == (True, 2, added.created_at)
    with pytest.raises(cenote.ConflictError, match="since it was read"):
        await knowledge.update(added)
    changed = await knowledge.update(cenote.Fact(id=saved.id, text="c", version=2))
    assert (changed.text, changed.embedded, changed.version) == ("c", False, 3)
    await knowledge.delete(added.id)
    await knowledge.delete(added.id)
    with pytest.raises(cenote.NotFoundError):
        await knowledge.update(changed)

    async def undone(tx: cenote.Transaction) -> None:
        await knowledge.add("never", tx=tx)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await cenote_store.transact(undone)
    await cenote_store.transact(lambda tx: knowledge.add("always", tx=tx))
    assert [one.text for one in await knowledge.list()] == ["always"]


async def test_texts_of_every_kind_and_limits(cenote_store: Store) -> None:
    knowledge = cenote_store.knowledge
    for hostile in HOSTILE:
        one = await knowledge.add(hostile, namespace=hostile, metadata={hostile: hostile}, embedding=at(1))
        found = await knowledge.search(hostile, namespace=hostile, where={hostile.replace("\\", "\\\\"): hostile})
        assert all(other.fact == one for other in found)
        assert [other.fact for other in await knowledge.search(embedding=at(0), namespace=hostile)] == [one]
        assert (await knowledge.find(one.id)) == one
    await knowledge.add("x", embedding=at(0))
    refused: list[tuple[str, dict[str, Any]]] = [
        ("embedding: 3 dimensions.*have 2", {"text": "x", "embedding": [1, 2, 3]}),
        ("embedding.*direction", {"text": "x", "embedding": [0, 0]}),
        ("embedding.*direction", {"text": "x", "embedding": [math.nan, 1]}),
        ("embedding.*numbers", {"text": "x", "embedding": ["a", "b"]}),
        (f"text: .*{limits.FACT_TEXT_BYTES_MAX}", {"text": "x" * (limits.FACT_TEXT_BYTES_MAX + 1)}),
        ("text", {"text": ""}),
        ("text", {"text": 1}),
        (f"namespace: .*{limits.AGENT_CHARS_MAX}", {"text": "x", "namespace": "n" * 201}),
        ("metadata", {"text": "x", "metadata": ["x"]}),
        ("fact_id", {"text": "x", "fact_id": "x"}),
    ]
    for message, given in refused:
        with pytest.raises(cenote.RejectedError, match=message):
            await knowledge.add(**given)
        with pytest.raises(cenote.RejectedError, match=r"facts\[1\]"):
            await knowledge.add_many([{"text": "fine"}, given])  # type: ignore[list-item]  # that is the point
    for message, options in (
        ("3 dimensions.*have 2", {"embedding": [1, 2, 3]}),
        ("query", {}),
        ("mode", {"query": "x", "mode": "fuzzy"}),
        ("limit", {"query": "x", "limit": 0}),
    ):
        with pytest.raises(cenote.RejectedError, match=message):
            await knowledge.search(**options)
    assert [one.text for one in await knowledge.list()] == ["x"]
    await knowledge.add("without")
    for verb in (knowledge.search("x", mode="vector"), knowledge.embedded()):
        with pytest.raises(cenote.SetupError, match="no embedder") as told:
            await verb
        assert "cenote[embed]" in str(told.value.hint)


async def test_an_embedder_that_fails_and_recovers_loses_nothing(cenote_servers: TestServers, letters: Letters) -> None:
    letters.fails = 2
    settings = cenote_servers.fresh(knowledge__embedder=letters.name)
    async with cenote.open(**settings) as store:
        await store.knowledge.add_many([{"text": "abba"}, {"text": "zzz"}])
        assert await texts(store, "zzz", mode="text") == ["zzz"]
        await store.knowledge.embedded(timeout=20)
        assert letters.fails == 0
        assert await texts(store, "baab", mode="vector") == ["abba", "zzz"]
        letters.fails = 10**6
        late = await store.knowledge.add("later")
        with pytest.raises(cenote.UnavailableError, match="no embedding yet"):
            await store.knowledge.embedded(timeout=0.3)
        with pytest.raises(cenote.UnavailableError, match="the model is away"):
            await store.knowledge.search("x", mode="vector")
        assert not (await store.knowledge.find(late.id)).embedded


async def test_two_stores_embed_each_fact_once_and_see_each_others(
    cenote_servers: TestServers, letters: Letters
) -> None:
    settings = cenote_servers.fresh(knowledge__embedder=letters.name)
    async with cenote.open(**settings) as one, another(one, knowledge__embedder=letters.name) as two:
        facts: list[cenote.NewFact] = [{"text": f"fact {n} {'qx'[n % 2] * 5}"} for n in range(600)]
        await asyncio.gather(one.knowledge.add_many(facts[:300]), two.knowledge.add_many(facts[300:]))
        await asyncio.gather(one.knowledge.embedded(30), two.knowledge.embedded(30))
        assert sorted(letters.seen) == sorted(fact["text"] for fact in facts)
        assert await texts(one, "qqqqq", mode="vector") == await texts(two, "qqqqq", mode="vector")
        added = await two.knowledge.add("qqqqqqqqqqqqqqq")
        await two.knowledge.embedded(30)
        assert (await one.knowledge.search("qqqqq", mode="vector"))[0].fact.id == added.id
        await one.knowledge.delete(added.id)
        assert added.text not in await texts(two, "qqqqq", mode="vector")


def test_what_is_no_embedder_is_refused() -> None:
    with pytest.raises(cenote.RejectedError, match="dimensions"):
        cenote.register_embedder(object())  # type: ignore[arg-type]  # that is the point
    with pytest.raises(cenote.SetupError, match="no embedder 'nobody'"):
        knowledge_embedder.named("nobody")


def test_numpy_is_not_imported_before_it_is_used() -> None:
    used = "import sys, cenote, cenote.blocking, cenote.store; cenote.Fact; cenote.register_embedder; "
    source = used + "assert not {'numpy', 'wordllama'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", source], check=True)


def test_knowledge_at_the_command_line(cenote_servers: TestServers, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = cenote_servers.fresh()
    cli = Cli(capsys, ["--data-dir", str(fresh["data_dir"]), "--namespace", fresh["namespace"]])
    nothing = cli("knowledge", "list")
    assert (nothing.code, nothing.out) == (1, "no facts\n")
    known = str(uuid4())
    for _ in range(2):
        assert cli("knowledge", "add", "a deep cave", "--metadata", '{"n": 1}', "--id", known).out == f"{known}\n"
    assert cli("knowledge", "add", "a lake", "--json").json["embedded"] is False
    page = cli("knowledge", "list", "--limit", "1", "--json").json
    assert len(cli("knowledge", "list", "--cursor", page["next"], "--json").json["facts"]) == 1
    (found,) = cli("knowledge", "search", "CAVE", "--where", '{"n": {"gte": 1}}', "--json").json["found"]
    assert (found["fact"]["id"], found["fact"]["metadata"]) == (known, {"n": 1})
    assert "a deep cave" in cli("knowledge", "search", "cave").out
    assert cli("knowledge", "search", "bats").code == 1
    assert cli("knowledge", "search", "cave", "--mode", "vector").code == 2
    assert cli("knowledge", "search", "cave", "--where", "[]").code == 64
    assert cli("knowledge", "forget").code == 64
    assert cli("knowledge", "forget", "--where", '{"n": 1}', "--json").json == {"forgotten": 1}
    assert cli("knowledge", "forget", "--all").out == "1 forgotten\n"
