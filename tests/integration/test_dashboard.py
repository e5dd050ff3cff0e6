"""The dashboard over HTTP: who may look, what pages say, and that they are what the API says."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import pytest_asyncio

from cenote.dashboard import app
from cenote.store import Store

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


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404), ("/agent?name=nobody", 404), ("/key?agent=scout&key=none", 404), ("/agents?limit=0", 400),
        ("/agents?limit=1000000", 400), ("/agents?limit=%C2%B2", 400), ("/tasks?cursor=forged", 404),
        ("/agent?name=", 404), ("/static/../application.py", 404),
    ],
)  # fmt: skip
async def test_bad_questions(path: str, status: int, client: Client) -> None:
    async with client() as asking:
        answer = await asking.get(path)
        assert answer.status_code == status
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
