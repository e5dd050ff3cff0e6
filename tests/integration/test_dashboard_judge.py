"""The dashboard in a real browser: every page in both schemes and two widths, live, and with hostile content."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

import cenote
from cenote.dashboard.serving import served
from cenote.store import Store
from cenote.testing import TestServers

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = "<script>alert(1)</script>\u202e"
PAGES = [
    "", "agents", "agent?name=scout", "key?agent=scout&key=plan", "tasks", "messages", "knowledge", "conflicts",
    "dead-letters", "repairs", "system",
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
    await scout.checkpoint("first")
    await hostile.put_many({"<b>k</b>": HOSTILE, "big": "x" * 1_000_000, "api_token": "hunter2"})
    await store.tasks.add("survey", {"depth_m": 40})
    await store.messages.send({"text": HOSTILE}, sender="scout", to="base")
    await store.knowledge.add(HOSTILE)
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
                    assert answer.status == 200, path
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
                assert told == []
                await context.close()
        finally:
            stop.set()
            writing.cancel()


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
        shown: Any = await page.locator("#dirty").inner_text()
        assert shown == f"{(await store.stats()).dirty_entries:,}"
