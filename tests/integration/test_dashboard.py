"""The dashboard over HTTP: who may look, what pages say, and that they are what the API says."""

import asyncio
import html
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any
from uuid import uuid4

import httpx
import pytest_asyncio

import cenote
from cenote.dashboard import app, rendering
from cenote.dashboard.guard import form_secret
from cenote.model import entry
from cenote.model import key as keys
from cenote.store import Store
from witness import reached

TOKEN = "a-token-of-the-test"
PAGES = [
    "/", "/agents", "/agent?name=scout", "/key?agent=scout&key=plan", "/tasks", "/messages", "/knowledge", "/conflicts",
    "/dead-letters", "/repairs", "/system",
]  # fmt: skip
Client = Callable[..., Any]


@pytest_asyncio.fixture
async def client(cenote_store: Store) -> AsyncIterator[Client]:
    @asynccontextmanager
    async def opened(*, actions: bool = False, token: str | None = TOKEN, **headers: str) -> AsyncIterator[Any]:
        board = app(cenote_store, actions=actions, token=TOKEN, hosts=["localhost"])
        given = {"authorization": f"Bearer {token}"} if token else {}
        transport = httpx.ASGITransport(board, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=given | headers
        ) as asking:
            yield asking

    await cenote_store.agent("scout").put_many({"plan": {"goal": "<b>north</b>"}, "password": "hunter2"})
    await cenote_store.flush(20)
    yield opened


async def test_each_page_is_there_as_html_and_as_json(client: Client) -> None:
    async with client() as asking:
        for path in PAGES:
            page = await asking.get(path)
            assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8"), path
            assert "default-src 'self'" in page.headers["content-security-policy"]
            assert "<script>" not in page.text
            assert "style=" not in page.text, path
            document = await asking.get(path, headers={"accept": "application/json"})
            assert document.status_code == 200, path
            assert isinstance(document.json(), dict)


async def test_what_is_shown_is_what_the_store_says(client: Client, cenote_store: Store) -> None:
    async with client() as asking:
        overview = (await asking.get("/?format=json")).json()
        stats = await cenote_store.stats()
        assert overview["stats"]["value"]["kv_entries"] == stats.kv_entries
        (agent,) = (await asking.get("/agents?format=json")).json()["agents"]
        assert (agent["name"], agent["keys"]) == ("scout", 2)
        key = (await asking.get("/key?agent=scout&key=plan&format=json")).json()["tiers"]
        version = str((await cenote_store.agent("scout").entry("plan")).version)
        assert (key["kv"]["version"], key["sql"]["version"], key["differs"]) == (version, version, False)
        page = (await asking.get("/agent?name=scout")).text
        assert "&lt;b&gt;north" in page
        assert "hunter2" not in page
        assert "hunter2" not in (await asking.get("/agent?name=scout&format=json")).text


BAD_QUESTIONS = [
    ("/nothing", 404), ("/agent?name=nobody", 404), ("/key?agent=scout&key=none", 404), ("/agents?limit=0", 400),
    ("/agents?limit=1000000", 400), ("/agents?limit=%C2%B2", 400), ("/tasks?cursor=forged", 404),
    ("/agent?name=", 404), ("/static/../application.py", 404), ("/agents?sort=bogus", 404),
    ("/agents?phase=bogus", 404), ("/agents?sort=written&after=forged", 404), ("/tasks?status=bogus", 400),
    ("/agents?sort=unflushed&after=-1", 404), ("/knowledge?cursor=forged", 404), ("/messages?before=forged", 404),
    ("/key?agent=scout&key=" + "x" * 600, 404), ("/agents?limit=" + "9" * 5_000, 400),
]  # fmt: skip


async def test_bad_questions(client: Client) -> None:
    async with client() as asking:
        for path, status in BAD_QUESTIONS:
            answer = await asking.get(path)
            assert answer.status_code == status, path
            assert answer.json().keys() == {"error", "message"}
            assert "Traceback" not in answer.text


async def test_who_may_look(client: Client) -> None:
    async with client(token=None) as asking:
        assert (await asking.get("/")).status_code == 401
        assert (await asking.get("/metrics")).status_code == 401
        assert (await asking.get("/livez")).status_code == 200
        assert (await asking.get("/?token=wrong")).status_code == 401
        entered = await asking.get(f"/agents?token={TOKEN}&prefix=s")
        assert (entered.status_code, entered.headers["location"]) == (303, "/agents?prefix=s")
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert (await asking.get("/agents")).status_code == 200
    async with client(host="evil.example") as asking:
        assert (await asking.get("/")).status_code == 403


async def test_actions_need_leave_and_a_form_of_ours(client: Client, cenote_store: Store) -> None:
    async with client() as asking:
        assert (await asking.post("/do/flush", data={"agent": "scout"})).status_code == 403
    async with client(actions=True) as asking:
        assert (await asking.post("/do/flush", data={"agent": "scout"})).status_code == 403
        page = (await asking.get("/agent?name=scout")).text
        secret = page.split('name="secret" value="')[1].split('"')[0]
        given = {"agent": "scout", "secret": secret}
        for what in ("flush", "hydrate", "checkpoint"):
            assert (await asking.post(f"/do/{what}", data=given)).status_code == 303
        (mark,) = (await cenote_store.agent("scout").checkpoints()).items
        made = await asking.post("/do/fork", data=given | {"new_agent": "twin", "checkpoint": str(mark.id)})
        assert made.headers["location"].endswith("/agent?name=twin")
        assert await cenote_store.agent("twin").get("plan") == {"goal": "<b>north</b>"}
        again = await asking.post("/do/fork", data=given | {"new_agent": "twin", "checkpoint": str(mark.id)})
        assert again.status_code == 409
        assert (await asking.post("/do/repair", data=given)).headers["location"] == "/repairs"
        assert (await asking.post("/do/anything", data=given)).status_code == 404


async def test_metrics_name_what_is_documented(client: Client) -> None:
    async with client() as asking:
        text = (await asking.get("/metrics")).text
    for name in ("cenote_dirty_keys", "cenote_oldest_dirty_age_seconds", "cenote_consistency_violations_total"):
        assert f"\n{name} " in text
    assert 'cenote_health{check="all"} 0.0' in text
    assert "scout" not in text


async def test_names_and_values_of_any_kind_make_pages(client: Client, cenote_store: Store) -> None:
    odd = "sur\ud800\u202e/../?&"
    await cenote_store.agent(odd).put_many(
        {"k\udfff": ({"password": "hunter2"},), "m": cenote.ORMap({"pwd": "hunter2"})}
    )
    mark = await cenote_store.agent("scout").checkpoint()
    await cenote_store.agent("scout").fork("twin", mark)
    await cenote_store.flush(20)
    async with client() as asking:
        listed = (await asking.get("/agents")).text
        for name in (odd, "twin"):
            assert f"/agent?name={rendering.encoded(name)}" in listed
            page = await asking.get(f"/agent?name={rendering.encoded(name)}")
            assert page.status_code == 200, name
            assert f"<h1><bdi>{html.escape(rendering.printable(name))}</bdi></h1>" in page.text
            document = await asking.get(f"/agent?name={rendering.encoded(name)}&format=json")
            assert document.json()["name"] == name
            assert "hunter2" not in page.text + document.text
        place = f"agent={rendering.encoded(odd)}&key=" + rendering.encoded("k\udfff")
        key = await asking.get(f"/key?{place}")
        assert (key.status_code, "hunter2" in key.text) == (200, False)
        assert (await asking.get("/agent?name=scout&prefix=nothing")).status_code == 200


async def test_nobody_is_led_astray(client: Client) -> None:
    """The token's redirect stays here, people are told in words, and each port has a cookie of its own."""
    async with client(token=None) as asking:
        for path in ("//evil.example/", "/%2Fevil.example/", "///evil.example/"):
            entered = await asking.get(f"http://localhost{path}?token={TOKEN}")
            assert entered.status_code == 303
            assert entered.headers["location"] == "/evil.example/"
        entered = await asking.get(f"/?token={TOKEN}&prefix=%ED%A0%80", headers={"host": "localhost:8899"})
        assert entered.headers["location"] == "/?prefix=%ED%A0%80"
        assert entered.headers["set-cookie"].startswith(f"cenote_token_8899={TOKEN};")
        asking.cookies.clear()
        refused = await asking.get("/", headers={"accept": "text/html"})
        assert (refused.status_code, "cenote status" in refused.text) == (401, True)
        odd = {"cookie": f"a b={{}}; cenote_token={TOKEN}"}
        assert (await asking.get("/agents", headers=odd)).status_code == 200
    async with client() as asking:
        missing = await asking.get("/agent?name=<b>", headers={"accept": "text/html"})
        assert missing.status_code == 404
        assert "There is nothing here" in missing.text
        assert "default-src 'self'" in missing.headers["content-security-policy"]


def secret_of(page: str) -> str:
    return page.split('name="secret" value="')[1].split('"')[0]


async def test_forms_of_other_sites_do_nothing(client: Client, cenote_store: Store) -> None:
    async with client(actions=True) as asking:
        given = {"agent": "scout", "secret": secret_of((await asking.get("/agent?name=scout")).text)}
        for told in (
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"origin": "http://evil.example"},
        ):
            assert (await asking.post("/do/checkpoint", data=given, headers=told)).status_code == 403, told
        assert not (await cenote_store.agent("scout").checkpoints()).items
        for told in ({"sec-fetch-site": "same-origin"}, {"origin": "http://localhost"}, {"origin": "null"}):
            assert (await asking.post("/do/flush", data=given, headers=told)).status_code == 303, told
        assert (await asking.post("/do/flush", content=b"&".join([b"a=1"] * 50))).status_code == 400
    open_to_all = app(cenote_store, actions=True)  # mounted behind an authentication of somebody else's
    async with httpx.AsyncClient(transport=httpx.ASGITransport(open_to_all), base_url="http://x") as asking:
        secret = secret_of((await asking.get("/agent?name=scout")).text)
        assert secret != given["secret"]
        assert cenote_store._core.epochs.store_id not in secret
        elsewhere = {"agent": "scout", "secret": form_secret(None, str(uuid4()))}  # of another store
        assert (await asking.post("/do/flush", data=elsewhere)).status_code == 403


def figures(page: str) -> dict[str, tuple[Any, str]]:
    """What a page shows: where it stands in the document → as it is, and as it is read."""
    found = re.findall(r'<data value="([^"]*)" data-of="([^"]*)">([^<]*)</data>', page.replace("'", '"'))
    return {path: (json.loads(html.unescape(raw)), text) for raw, path, text in found}


def at(document: Any, path: str) -> Any:
    for name in path.split("."):
        document = document[int(name) if isinstance(document, list) else name]
    return document


def read(path: str, value: Any) -> str:
    of_time = path.rpartition(".")[2] in ("p50", "p95", "p99", "oldest_ms", "oldest_dirty_ms", "window_ms")
    return rendering.ms(value) if of_time else rendering.number(value)


async def test_every_figure_is_that_of_its_tick_and_of_the_store(client: Client, cenote_store: Store) -> None:
    assert await cenote_store.agent("scout").get("plan")
    async with client() as asking:
        async for page, document in _one_tick(asking):
            shown = figures(page)
            assert len(shown) > 20
            for path, (raw, text) in shown.items():
                assert raw == at(document, path), path
                assert text == read(path, raw), path
            break
        before, after = await _settled(cenote_store), None
        while before != after:  # what the flusher tells of itself comes once a second
            before = await _settled(cenote_store)
            await asyncio.sleep(0.6)  # so that the look is a later one
            document = (await asking.get("/?format=json")).json()
            after = await _settled(cenote_store)
        told = document["stats"]["value"]
        assert {name: told[name] for name in before} == before


async def _settled(store: Store) -> dict[str, Any]:
    """What does not change while nobody writes."""
    stats = asdict(await store.stats())
    names = ("kv_entries", "sql_rows", "dirty_entries", "violations", "hits", "flushed", "commits", "epoch", "flusher")
    return {name: stats[name] for name in names}


async def _one_tick(asking: Any) -> AsyncIterator[tuple[str, Any]]:
    """A page and a document of the same look at the store."""
    for _ in range(50):
        page, document = (await asking.get("/")).text, (await asking.get("/?format=json")).json()
        if f'data-tick="{document["tick"]}"' in page:
            yield page, document
    raise AssertionError("never two answers of one tick")


async def test_many_who_look_are_one_load(client: Client, cenote_store: Store) -> None:
    async with client() as asking:
        documents = await asyncio.gather(*(asking.get("/?format=json") for _ in range(30)))
        assert len({one.json()["tick"] for one in documents}) <= 2


async def _pages(asking: Any, query: str) -> list[str]:
    """The names on all pages of a list, in their order."""
    names: list[str] = []
    after = ""
    for _ in range(40):
        page = (await asking.get(f"/agents?format=json&limit=3&{query}&after={rendering.encoded(after)}")).json()
        assert page["error"] is None
        names += [one["name"] for one in page["agents"]]
        after = page["next"]
        if after is None:
            return names
    raise AssertionError(f"pages without an end: {names}")


async def test_agents_are_sorted_filtered_and_paged(client: Client, cenote_store: Store) -> None:
    order = [f"a{number}" for number in (3, 1, 7, 5, 2, 6, 4)]
    for name in order:
        await cenote_store.agent(name).put("k", 1, durability="sql")
    await cenote_store._machines.lifecycle.table.begin(
        {keys.agent_ref("a2").id: "a2"}, "hydrate", "hydrating", "nobody.1", 60_000
    )
    await reached(lambda: _registered(cenote_store, 8), "the registry")
    async with client() as asking:
        assert await _pages(asking, "prefix=a") == sorted(order)
        assert await _pages(asking, "prefix=a&sort=written") == order[::-1]
        assert await _pages(asking, "prefix=a&phase=hydrating") == ["a2"]
        assert await _pages(asking, "prefix=a&phase=hydrating&sort=written") == ["a2"]
        assert "a2" not in await _pages(asking, "phase=active")
        assert "newest 1,000 commits" in (await asking.get("/agents?sort=written")).text
        assert cenote_store._machines.flusher is not None
        await cenote_store._machines.flusher.stop()
        await cenote_store.agent("a5").put_many({"k": 2, "l": 2, "m": 2})
        await cenote_store.agent("new").put_many({"k": 2, "l": 2})  # PostgreSQL has never heard of it
        await cenote_store.agent("a1").put_many({"k": 2, "l": 2})
        await cenote_store.agent("a9").put("k", 1)
        assert await _pages(asking, "sort=unflushed") == ["a5", "a1", "new", "a9"]
        assert await _pages(asking, "sort=unflushed&prefix=a") == ["a5", "a1", "a9"]
        assert await _pages(asking, "sort=unflushed&phase=hydrating") == []
        page = (await asking.get("/agents?sort=unflushed&format=json")).json()
        assert [one["dirty"] for one in page["agents"]] == [3, 2, 2, 1]
        assert (page["agents"][0]["keys"], page["agents"][2]["keys"]) == (1, None)
    cenote_store._machines.flusher.start()


async def _registered(store: Store, count: int) -> bool:
    return len(await store._core.table.agents_page(None, 100)) >= count


async def test_the_past_of_a_key_says_what_changed(client: Client, cenote_store: Store) -> None:
    agent = cenote_store.agent("scout")
    await agent.checkpoint()
    await agent.put("plan", {"goal": "dive", "by": "rope"})
    await agent.checkpoint()
    await agent.delete("plan")
    await agent.checkpoint()
    async with client() as asking:
        past = (await asking.get("/key?agent=scout&key=plan&format=json")).json()["history"]["value"]
        assert [one["deleted"] for one in past] == [True, False, False]
        assert past[2]["changes"] is None
        assert past[1]["changes"]["changes"] == [
            {"path": "goal", "old": "'<b>north</b>'", "new": "'dive'", "lines": None},
            {"path": "by", "old": None, "new": "'rope'", "lines": None},
        ]
        assert past[0]["changes"]["changes"][0]["new"] is None
        page = (await asking.get("/key?agent=scout&key=plan")).text
        assert "&lt;b&gt;north" in page
        assert "the whole value" in page
        for value in ("x" * 1_000_000, ["y" * 100] * 2_000, 1):  # by reference, compressed, small
            await agent.put("large", value)
            await agent.checkpoint()
        past = (await asking.get("/key?agent=scout&key=large&format=json")).json()["history"]["value"]
        assert past[0]["value"] == "1"
        assert all(one["value"].startswith("a value of ") for one in past[1:])
        assert past[1]["changes"]["changes"][0]["new"] == past[1]["value"]


async def test_dead_letters_are_retried_and_discarded(client: Client, cenote_store: Store) -> None:
    core = cenote_store._core
    for key, body in (("good", b'"a\\u0000b"'), ("broken", b"{broken")):
        wire = cenote_store.agent("scout")._target(key).wire
        await core.stream.publish(wire, entry.header("j", "foreign.1", None, None), body, 5_000)
    await reached(lambda: _letters(cenote_store, 2), "the quarantine")
    async with client(actions=True) as asking:
        page = (await asking.get("/dead-letters")).text
        ids = {one.key: one.id for one in await cenote_store.dead_letters.list()}
        given = {"secret": secret_of(page)}
        assert page.count("/do/retry-letter") == 2
        done = await asking.post("/do/retry-letter", data=given | {"letter": str(ids["good"])})
        assert (done.status_code, done.headers["location"]) == (303, "/dead-letters")
        refused = await asking.post("/do/retry-letter", data=given | {"letter": str(ids["broken"])})
        assert refused.status_code == 409
        done = await asking.post("/do/discard-letter", data=given | {"letter": str(ids["broken"])})
        assert done.status_code == 303
        for letter in (str(ids["good"]), "0", "-1", "x", "9" * 19, "9" * 30):
            assert (await asking.post("/do/discard-letter", data=given | {"letter": letter})).status_code == 404, letter
        assert await cenote_store.dead_letters.list() == []
    async with client() as asking:
        assert (await asking.post("/do/retry-letter", data=given | {"letter": "1"})).status_code == 403
        assert "/do/" not in (await asking.get("/dead-letters")).text


async def _letters(store: Store, count: int) -> bool:
    return len(await store.dead_letters.list()) >= count


async def test_tasks_are_cancelled_and_replayed(client: Client, cenote_store: Store) -> None:
    task = await cenote_store.tasks.add("survey", {"password": "hunter2"})
    async with client(actions=True) as asking:
        page = (await asking.get("/tasks?status=pending")).text
        assert "hunter2" not in page
        given = {"secret": secret_of(page), "task": str(task.id), "status": "pending"}
        done = await asking.post("/do/cancel-task", data=given)
        assert (done.status_code, done.headers["location"]) == (303, "/tasks?status=pending")
        assert (await cenote_store.tasks.get(task.id)).status == "cancelled"
        assert (await asking.post("/do/replay-task", data=given)).status_code == 303
        (claimed,) = await cenote_store.tasks.claim("survey")
        await cenote_store.tasks.complete(claimed)
        assert (await asking.post("/do/replay-task", data=given)).status_code == 409
        for wrong in (str(uuid4()), "x", ""):
            assert (await asking.post("/do/cancel-task", data=given | {"task": wrong})).status_code == 404


async def test_messages_are_paged_both_ways_and_knowledge_is_searched(client: Client, cenote_store: Store) -> None:
    await cenote_store.messages.send_many([{"body": number, "sender": "scout", "to": "base"} for number in range(120)])
    await cenote_store.knowledge.add("a tunnel leads to the pool")
    await cenote_store.knowledge.add("the rope is wet")
    async with client() as asking:

        async def page(query: str) -> Any:
            return (await asking.get(f"/messages?to=base&format=json{query}")).json()

        def bodies(found: Any) -> list[int]:
            return [int(one["body"]) for one in found["messages"]]

        newest = await page("")
        assert (bodies(newest), newest["newer"]) == (list(range(119, 69, -1)), None)
        older = await page("&before=" + newest["older"])
        oldest = await page("&before=" + older["older"])
        assert (bodies(oldest), oldest["older"]) == (list(range(19, -1, -1)), None)
        back = await page("&after=" + oldest["newer"])
        assert bodies(back) == list(range(69, 19, -1))
        again = await page("&after=" + back["newer"])
        assert (bodies(again), again["newer"]) == (bodies(newest), None)
        assert bodies(await page("&before=" + again["older"])) == bodies(older)
        found = (await asking.get("/knowledge?query=pool+tunnel&format=json")).json()["facts"]
        assert [one["text"] for one in found] == ["a tunnel leads to the pool"]
