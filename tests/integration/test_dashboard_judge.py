"""The dashboard in a real browser: every page in both schemes and two widths, live, and with hostile content."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

import cenote
from cenote.dashboard.serving import served
from cenote.model import entry
from cenote.store import Store
from cenote.testing import TestServers
from witness import reached

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = "<script>alert(1)</script>\u202e"
PAGES = [
    "", "agents", "agent?name=scout", "key?agent=scout&key=plan", "tasks", "messages", "knowledge", "conflicts",
    "dead-letters", "repairs", "system", "agents?sort=unflushed", "agents?sort=written&phase=active",
    "key?agent=scout&key=notes", "agent?name=twin", "knowledge?query=first", "messages?to=base", "nothing",
]  # fmt: skip


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    path = shutil.which("chromium")
    assert path, "Debian's chromium is needed: scripts/debian-packages.sh"
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield opened
        finally:
            await opened.close()


async def filled(store: Store) -> None:
    scout, hostile = store.agent("scout"), store.agent(HOSTILE)
    await scout.put_many({"plan": {"goal": "north"}, "step": 1})
    await scout.put("notes", "first line\nsecond line\n" * 20)
    await scout.checkpoint("first")
    await scout.put_many({"plan": {"goal": "dive", "by": HOSTILE}, "notes": "first line\nthird line\n" * 20})
    await scout.fork("twin", await scout.checkpoint("second"))
    await store._core.stream.publish(
        scout._target("odd").wire, entry.header("j", "foreign.1", None, None), b'"a\\u0000b"', 5_000
    )
    await hostile.put_many({"<b>k</b>": HOSTILE, "big": "x" * 1_000_000, "api_token": "hunter2"})
    await store.tasks.add("survey", {"depth_m": 40})
    await store.messages.send({"text": HOSTILE}, sender="scout", to="base")
    await store.messages.send_many([{"body": n, "sender": "scout", "to": "base"} for n in range(60)])
    await store.knowledge.add(HOSTILE)
    await store.knowledge.add("the first fact")
    await store.flush(30)
    schema = store.config.names.schema("agents")
    await store._core.db.execute(
        f"INSERT INTO {schema}.registry (agent_id, name)"
        " SELECT gen_random_uuid(), 'many-' || n FROM generate_series(1, 10000) AS n"
    )


def heard(page: Page) -> list[str]:
    """Whatever goes wrong in it."""
    told: list[str] = []
    page.on("console", lambda one: told.append(one.text) if one.type in ("error", "warning") else None)
    page.on("pageerror", lambda one: told.append(str(one)))
    page.on("dialog", lambda one: told.append(one.message))
    return told


@pytest.mark.judge
async def test_every_page_in_a_browser(cenote_servers: TestServers, tmp_path: Path) -> None:
    async with (
        cenote.open(**cenote_servers.fresh()) as store,
        served(store, port=0, actions=True, token_file=tmp_path / "token") as address,
        browser() as chromium,
    ):
        await filled(store)
        stop, writing = asyncio.Event(), asyncio.create_task(load(store))
        base, axe = address.split("?")[0], Axe()
        try:
            for scheme, width in [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]:
                context = await chromium.new_context(
                    viewport={"width": width, "height": 900},
                    color_scheme=scheme,  # type: ignore[arg-type]  # one of two literals
                )
                page = await context.new_page()
                told = heard(page)
                await page.goto(address)
                for path in PAGES:
                    answer = await page.goto(base + path, wait_until="load")
                    assert answer is not None
                    assert answer.status == (404 if path == "nothing" else 200), path
                    assert await page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
                    found = await axe.run(page)
                    serious = [
                        one["id"] for one in found.response["violations"] if one["impact"] in ("serious", "critical")
                    ]
                    assert not serious, (path, scheme, width, serious)
                await page.goto(base + "agents?prefix=%3Cscript")
                await page.get_by_role("link", name="<script>").click()
                assert "hunter2" not in await page.content()
                assert await page.get_by_text("<script>alert(1)").count() >= 1
                assert [one for one in told if "404" not in one] == []  # one of the pages is none
                await context.close()
        finally:
            stop.set()
            writing.cancel()


@pytest.mark.judge
async def test_actions_and_lists_by_hand(cenote_servers: TestServers, tmp_path: Path) -> None:
    """Forms as a browser sends them, and pages turned by their links, with the keyboard alone where that is natural."""
    async with (
        cenote.open(**cenote_servers.fresh()) as store,
        served(store, port=0, actions=True, token_file=tmp_path / "token") as address,
        browser() as chromium,
    ):
        await filled(store)
        await reached(lambda: store.dead_letters.list(), "the quarantine")
        base = address.split("?")[0]
        page = await (await chromium.new_context()).new_page()
        told = heard(page)
        await page.goto(address)
        assert "token" not in page.url
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")  # skips to the content
        assert page.url.endswith("#main")

        await page.goto(base + "dead-letters")
        await page.get_by_role("button", name="retry").click()
        await page.get_by_text("none: PostgreSQL took everything").wait_for()
        assert await store.dead_letters.list() == []

        await page.goto(base + "tasks")
        await page.get_by_role("button", name="cancel").click()
        await page.get_by_role("button", name="replay").click()
        await page.get_by_role("button", name="cancel").wait_for()

        await page.goto(base + "agents")
        await page.get_by_label("name begins with").fill("many-99")
        async with page.expect_navigation():
            await page.keyboard.press("Enter")
        assert await page.locator("tbody tr").count() == 50
        async with page.expect_navigation():
            await page.get_by_role("link", name="Next page").click()
        assert await page.locator("tbody tr").count() == 50
        await page.get_by_label("sort by").select_option("written")
        await page.get_by_label("name begins with").fill("")
        await page.get_by_role("button", name="Show").click()
        await page.get_by_text("newest 1,000 commits").wait_for()
        await page.get_by_role("link", name="<script>").click()
        await page.get_by_role("button", name="checkpoint").click()
        await page.get_by_text("from the dashboard").wait_for()
        await page.get_by_label("name of the fork of checkpoint 1").fill("another")
        async with page.expect_navigation():
            await page.get_by_role("button", name="fork").click()
        assert await page.get_by_role("heading", level=1).inner_text() == "another"

        await page.goto(base + "messages?to=base")
        for turn in ("Older", "Newer"):
            async with page.expect_navigation():
                await page.get_by_role("link", name=turn).click()
        assert await page.get_by_role("link", name="Newer").count() == 0

        await page.goto(base + "key?agent=scout&key=notes")
        assert await page.locator(".came").count() > 10
        assert told == []


async def load(store: Store) -> None:
    agent = store.agent("busy")
    for number in range(1_000_000):
        await agent.put(f"k{number % 50}", number)
        await asyncio.sleep(0.005)


@pytest.mark.judge
async def test_the_overview_lives_and_turns_red_by_itself(cenote_servers: TestServers) -> None:
    async with (
        cenote.open(**cenote_servers.fresh(flush__drain_ms=0)) as store,
        served(store, port=0, actions=False, token_file=None) as address,
        browser() as chromium,
    ):
        await store.agent("a").put("k", 1)
        await store.flush(10)
        page = await (await chromium.new_context()).new_page()
        await page.goto(address)
        verdict = page.locator("section.verdict")
        await page.wait_for_selector("section.verdict.healthy")
        assert store._machines.flusher is not None
        await store._machines.flusher.stop()
        for number in range(300):
            await store.agent("a").put(f"k{number}", number)
        await page.wait_for_selector("section.verdict.unhealthy", timeout=10_000)
        assert "consistency" in await verdict.inner_text()

        async def all_told() -> bool:
            return await page.locator("#dirty").inner_text() == f"{(await store.stats()).dirty_entries:,}"

        await reached(all_told, "the number that the API tells, on the page")
