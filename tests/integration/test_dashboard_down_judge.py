"""The dashboard while servers are stopped or frozen: each page answers in time, names what is down, shows what the
other server has, and recovers by itself."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from kv_server import USER, KvServer, running
from pg_server import PgServer, running_server

import cenote
from cenote.dashboard import app
from cenote.store import Store
from witness import reached

BOUND_S = 12  # two servers, asked one after the other, that do not answer; and a machine that is busy
OF_SQL = ["/tasks", "/messages", "/knowledge", "/knowledge?query=tunnel", "/dead-letters", "/repairs"]
OF_BOTH = [
    "/", "/agents", "/agents?sort=unflushed", "/agents?sort=written", "/agent?name=scout",
    "/key?agent=scout&key=plan", "/conflicts",
]  # fmt: skip
PAGES = [*OF_BOTH, *OF_SQL, "/system"]


_numbers = count(1)


@asynccontextmanager
async def opened(kv: KvServer, pg: PgServer) -> AsyncIterator[tuple[Store, httpx.AsyncClient]]:
    given: dict[str, Any] = {"kv": kv.url, "kv__user": USER, "kv__password": kv.password, "sql": pg.url()}
    given["namespace"] = f"d{next(_numbers)}"
    async with cenote.open(**given, sql__migrate="auto", flush__drain_ms=0, retry__deadline_ms=20_000) as store:
        await store.agent("scout").put_many({"plan": {"goal": "north"}, "step": 1})
        await store.agent("scout").checkpoint("first")
        await store.tasks.add("survey")
        await store.messages.send("hello", sender="scout", to="base")
        await store.knowledge.add("a tunnel")
        await store.flush(30)
        transport = httpx.ASGITransport(app(store), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as asking:
            yield store, asking


async def answers(asking: httpx.AsyncClient) -> dict[str, tuple[int, str, Any]]:
    """Each page and its document, all asked at the same time: its status, its text and what it says."""

    async def one(path: str) -> tuple[int, str, Any]:
        async with asyncio.timeout(BOUND_S):
            page = await asking.get(path, headers={"accept": "text/html"})
        async with asyncio.timeout(BOUND_S):
            document = await asking.get(path, headers={"accept": "application/json"})
        assert page.status_code == document.status_code, path
        assert "Traceback" not in page.text + document.text, path
        assert page.headers["content-type"].startswith("text/html"), path
        return page.status_code, page.text, document.json()

    return dict(zip(PAGES, await asyncio.gather(*map(one, PAGES)), strict=True))


def errors(found: Any) -> list[str]:
    """Whatever a document says that went wrong."""
    if isinstance(found, list):
        return [text for one in found for text in errors(one)]
    if not isinstance(found, dict):
        return []
    own = [found["error"]] if isinstance(found.get("error"), str) else []
    return own + [text for one in found.values() for text in errors(one)]


def named(found: dict[str, tuple[int, str, Any]], paths: list[str], down: str) -> None:
    for path in paths:
        status, page, document = found[path]
        assert status == 200, (path, document)
        assert down in page, path
        if path == "/":
            bad = [one["name"] for one in document["health"]["value"]["checks"] if one["verdict"] == "unhealthy"]
            assert {"NATS": "jetstream", "PostgreSQL": "postgresql"}[down] in bad, bad
        else:
            assert any(down in text for text in errors(document)), (path, errors(document))


async def tick(asking: httpx.AsyncClient) -> int:
    async with asyncio.timeout(BOUND_S):
        return int((await asking.get("/?format=json")).json()["tick"])


async def another(asking: httpx.AsyncClient, than: int) -> bool:
    return await tick(asking) != than


async def well(asking: httpx.AsyncClient) -> bool:
    try:
        found = await answers(asking)
    except AssertionError:
        return False  # some part is back already, and another one is not
    return all(status == 200 and not errors(document) for status, _, document in found.values())


def stop_pg(kv: KvServer, pg: PgServer) -> Callable[[], None]:
    pg.stop(signal.SIGQUIT)
    return pg.start


def stop_kv(kv: KvServer, pg: PgServer) -> Callable[[], None]:
    kv.kill()
    return kv.start


def stop_both(kv: KvServer, pg: PgServer) -> Callable[[], None]:
    begin = stop_pg(kv, pg), stop_kv(kv, pg)
    return lambda: [one() for one in begin] and None


def freeze_kv(kv: KvServer, pg: PgServer) -> Callable[[], None]:
    kv.freeze()
    return kv.thaw


def freeze_pg(kv: KvServer, pg: PgServer) -> Callable[[], None]:
    """Statements that have begun hang as well."""
    assert pg.process is not None
    children = Path(f"/proc/{pg.process.pid}/task/{pg.process.pid}/children").read_text().split()
    pids = [pg.process.pid, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    def thaw() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    return thaw


@pytest.fixture(scope="module")
def pg() -> Any:
    with running_server() as server:
        yield server


CASES = [
    (stop_pg, {"PostgreSQL"}), (stop_kv, {"NATS"}), (stop_both, {"NATS", "PostgreSQL"}), (freeze_kv, {"NATS"}),
    (freeze_pg, {"PostgreSQL"}),
]  # fmt: skip


@pytest.mark.judge
@pytest.mark.parametrize(("take", "down"), CASES, ids=[case[0].__name__ for case in CASES])
async def test_pages_answer_while_servers_are_down_and_recover(
    take: Callable[[KvServer, PgServer], Callable[[], None]], down: set[str], tmp_path: Path, pg: PgServer
) -> None:
    with running(tmp_path) as kv:
        async with opened(kv, pg) as (store, asking):
            assert await well(asking)
            give_back = await asyncio.to_thread(take, kv, pg)
            before = await tick(asking)  # made a moment ago, perhaps
            try:
                if down == {"PostgreSQL"}:
                    await store.agent("scout").put("late", 1)
                await reached(lambda: another(asking, before), "a look that began afterwards")
                for _ in range(2):  # as it happens, and when it is known
                    found = await answers(asking)
                    if "PostgreSQL" in down:
                        named(found, OF_SQL, "PostgreSQL")
                    if len(down) == 1:
                        named(found, OF_BOTH, *down)
                    else:  # without NATS nobody knows of whom PostgreSQL should be asked, and a key is nowhere
                        named(found, ["/", "/agents", "/agents?sort=written", "/agent?name=scout"], "PostgreSQL")
                        named(found, ["/", "/agents", "/agents?sort=unflushed", "/agent?name=scout"], "NATS")
                    if len(down) == 2:
                        status, _, document = found["/key?agent=scout&key=plan"]
                        assert (status, document.keys()) == (503, {"error", "message"})
                        assert "NATS" in document["message"]
                        assert "PostgreSQL" in document["message"]
                    else:
                        kept = found["/key?agent=scout&key=plan"][2]["tiers"]
                        assert (kept["kv"] is None, kept["sql"] is None) == ("NATS" in down, "PostgreSQL" in down)
                        listed = found["/agent?name=scout"][2]["keys"]
                        assert [one["key"] for one in listed][-2:] == ["plan", "step"]
                        assert not any(one["differs"] for one in listed)
                    assert found["/system"][0] == 200
                    if down == {"NATS"}:
                        assert all(not errors(found[path][2]) for path in OF_SQL)
            finally:
                await asyncio.to_thread(give_back)
            await reached(lambda: well(asking), "every page is whole again")
