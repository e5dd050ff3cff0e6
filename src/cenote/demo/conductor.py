"""The run: queue the work, start the swarm, kill what it stands on, let its state go cold, warm some of it up, compare
with SQL, and ask what is known now."""

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import cenote
from cenote.demo import careful, shared, survey
from cenote.demo.audience import Audience
from cenote.demo.journal import Book, Journal, Place, digest
from cenote.demo.pool import NAMESPACE
from cenote.demo.report import Figures, Show
from cenote.demo.rooms import Rooms, heard_losses, task_losses, told_losses
from cenote.demo.swarm import Swarm
from cenote.demo.telling import MESSAGE, TASK, space
from cenote.demo.verify import Loss, Sql, differences, losses, shared_losses
from cenote.naming import Names

_STILL_S_MAX = 60.0  # so long without an acknowledged write means that something hangs
_COLD_S_MAX = 30.0  # idle entries leave KV within this, or eviction does not work
_WARMED_AGENTS = 25
_NEARLY = 0.9  # of the tasks: from then on the queue is asked whether all are done
_ATTEMPTS_MAX = 100  # an outage may cost each task some: its lease runs out
_LOOK_S = 0.1  # how often the journals are read …
_TELL_S = 0.5  # … and the store is asked for its figures


class StuckError(Exception):
    """The demo waited for something that did not happen."""


class Conductor:
    """One run of the demo over an open store."""

    def __init__(self, store: cenote.Store, figures: Figures, show: Show, folder: Path) -> None:
        self._store = store
        self._figures = figures
        self._show = show
        self._book = Book()
        self._journals = [folder / "conductor.journal"]
        self._journal = Journal(self._journals[0])
        self._run = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self._wanted = [module.name for module in survey.modules(figures.modules)]
        self._tasks: list[cenote.Task] = []
        self._orphans: set[str] = set()
        self._faults_over = False
        self._news = asyncio.Condition()
        self._told = 0.0
        self._swarm = Swarm(folder, self._run, self._servers()["data_dir"])
        url = store.config.sql.url
        assert url is not None, "an open store knows where its PostgreSQL is"
        self._sql = Sql(url.get_secret_value(), Names(NAMESPACE).schema("agents"))
        self._rooms = Rooms(url.get_secret_value(), Names(NAMESPACE))
        self._audience = Audience(store, space(self._run))

    async def conduct(self) -> None:
        """Everything, in order; the result is in the figures."""
        committed_before, figures = await self._sql.committed(), self._figures
        async with self._audience.listening():
            await self._queue()
            await self._survey()
            _, figures.answers = await asyncio.gather(self._cool_down(), self._audience.ask())
            state = await self._warm_up()
            await careful.patiently(self._store.flush)
            stats = await careful.patiently(self._store.stats)
            rows, book = await self._sql.rows(), self._read_journals()
            self._count(book, stats)
            figures.rows = len(rows)
            figures.coalesced = book.acked - (await self._sql.committed() - committed_before)
            figures.losses = losses(book, rows) + differences(state, rows) + await self._shared_losses(book)
            self._show.say(f"read {len(rows):,} rows with plain asyncpg and compared them with the workers' journals")
            figures.losses += await self._queue_losses(book)
            figures.lost = len(figures.losses)

    def _count(self, book: Book, stats: cenote.Stats) -> None:
        figures = self._figures
        figures.agents = len({agent for agent, key in book.promises if key == "report"})
        figures.writes_acked, figures.writes_in_doubt = book.acked, len(book.doubts)
        figures.evicted, figures.lag_ms = stats.evicted, _lag(stats)
        figures.hydrated = stats.hydrated + book.events["left#"]
        figures.recovered = len(self._orphans & book.finished)
        figures.late = book.events["late"]
        figures.shares_acked, figures.shares_in_doubt = book.shares, len(book.shares_in_doubt)

    # --- the swarm ------------------------------------------------------------------------------------------

    async def _queue(self) -> None:
        """One task for each module. One that an interrupted run has left in this store is done now, in this run."""
        wanted: list[cenote.NewTask] = [
            {"task_type": TASK, "payload": {"module": name}, "dedupe_key": name, "attempts_max": _ATTEMPTS_MAX}
            for name in self._wanted
        ]
        self._tasks = await careful.patiently(lambda: self._store.tasks.add_many(wanted))
        self._show.say(f"{len(wanted)} tasks are in the queue, one for each module of the standard library")

    async def _survey(self) -> None:
        faults = None
        try:
            for _ in range(self._figures.workers):
                await self._swarm.start()
            self._show.say(f"{self._figures.workers} workers begin to survey")
            faults = asyncio.create_task(self._faults())
            await asyncio.gather(self._watch(), faults)
        finally:
            if faults is not None:
                faults.cancel()
            await self._swarm.stop()
        heard = len(set(self._audience.heard))
        self._show.say(f"the survey is complete: {self._book.acked:,} writes acknowledged, {heard} messages heard")

    async def _watch(self) -> None:
        """Follow the journals until everything is done and all workers have left."""
        acked, moved = -1, time.monotonic()
        while not self._swarm.finished():
            async with self._news:
                book = self._read_journals()
                self._news.notify_all()
            if book.acked != acked:
                acked, moved = book.acked, time.monotonic()
            elif time.monotonic() - moved > _STILL_S_MAX:
                raise StuckError(f"no write was acknowledged for {_STILL_S_MAX:.0f} s")
            await self._tell()
            if self._faults_over and await self._nothing_to_do():
                self._swarm.dismiss()
            await asyncio.sleep(_LOOK_S)
        self._read_journals()

    async def _nothing_to_do(self) -> bool:
        """Whether all tasks are finished."""
        if len(self._book.finished) < _NEARLY * len(self._wanted):
            return False
        counts = await careful.patiently(lambda: self._store.tasks.counts(TASK))
        return not any(counts[status] for status in ("pending", "running", "retry"))

    async def _tell(self) -> None:
        if time.monotonic() - self._told < _TELL_S:
            return
        self._told = time.monotonic()
        try:
            stats = await self._store.stats()
        except cenote.CenoteError:
            figures = "NATS is away, the workers wait"
        else:
            figures = f"{stats.dirty_entries:,} not yet in PostgreSQL, {stats.evicted:,} evicted"
        text = f"{self._book.acked:,} writes acked, {len(self._audience.heard):,} messages heard, {figures}"
        self._show.update(len(self._book.finished), self._figures.modules, text)

    def _read_journals(self) -> Book:
        for path in [*self._journals, *(member.journal for member in self._swarm.members)]:
            self._book.read(path)
        return self._book

    # --- the faults -----------------------------------------------------------------------------------------

    async def _faults(self) -> None:
        if self._figures.faults:
            await self._kill_all()
        self._faults_over = True

    async def _kill_all(self) -> None:
        """One fault at a time, each when the survey has come so far, the next when everything flows again."""
        await self._surveyed(0.2)
        self._figures.lag_ms_before_faults = _lag(await careful.patiently(self._store.stats))
        await self._kill_worker()
        await self._surveyed(0.4)
        await self._kill_server("nats")
        await self._surveyed(0.6)
        await self._kill_server("postgres")

    async def _surveyed(self, share: float) -> None:
        enough = share * self._figures.modules
        async with self._news:
            await self._news.wait_for(lambda: len(self._book.finished) >= enough)

    async def _kill_worker(self) -> None:
        async with self._news:
            victim = await self._news.wait_for(lambda: self._swarm.victim(self._read_journals()))
        assert victim is not None
        await self._swarm.kill(victim)
        self._figures.kills["worker"] += 1
        self._read_journals()
        self._orphans = self._book.in_hand(victim.journal)
        heir = await self._swarm.start()
        held = (
            f"kill -9 {victim.name} with {len(self._orphans)} tasks in hand: they come again when its leases are over"
        )
        self._show.say(f"{held}; {heir.name} takes its place", "yellow")

    async def _kill_server(self, name: Literal["nats", "postgres"]) -> None:
        began = time.monotonic()
        os.kill(self._servers()[name]["pid"], signal.SIGKILL)
        self._figures.kills[name] += 1
        self._show.say(f"kill -9 {name}", "yellow")
        await careful.put(self._journal, self._store.agent("conductor"), f"after/{name}", {"run": self._run})
        await careful.patiently(self._store.flush)
        seconds = self._figures.outage_s[name] = round(time.monotonic() - began, 2)
        self._show.say(f"{name} is back: a write was acknowledged and is in PostgreSQL {seconds:.1f} s after the kill")

    async def _shared_losses(self, book: Book) -> list[Loss]:
        """The map and the set that all workers wrote, as PostgreSQL holds them and as anybody reads them."""
        agent = self._store.agent(shared.agent(self._run))
        values = await careful.patiently(lambda: agent.get_many([shared.FINDINGS, shared.SURVEYED]))
        read = {(agent.name, key): shared.parts(value) for key, value in values.items()}
        found = sum(read.get((agent.name, shared.FINDINGS), Counter()).values())
        names = len(read.get((agent.name, shared.SURVEYED), ()))
        self._show.say(f"one map and one set that all workers wrote hold {found:,} findings and {names} modules")
        return shared_losses(book, await self._sql.shared(agent.name)) + shared_losses(book, read)

    async def _queue_losses(self, book: Book) -> list[Loss]:
        """The queue, and what was said and is known since: as PostgreSQL holds it, and as it was heard."""
        tasks = await self._rooms.tasks([task.id for task in self._tasks])
        held, figures = await self._rooms.told(space(self._run)), self._figures
        said = {name for kind, name in held if kind == MESSAGE}
        await self._audience.caught_up(said)
        figures.tasks = sum(task.status == "done" for task in tasks)
        figures.tasks_again = sum(task.attempts > 1 for task in tasks)
        figures.tasks_orphaned = sum(task.attempts > 1 and task.module in self._orphans for task in tasks)
        figures.messages, figures.facts = len(said), len(held) - len(said)
        figures.heard = len(said & set(self._audience.heard))
        self._show.say(f"and {len(tasks)} tasks, {figures.messages} messages and {figures.facts:,} facts as well")
        done = {task.module for task in tasks if task.status == "done"}
        found = task_losses(tasks, self._wanted) + told_losses(book, held, done)
        return found + heard_losses(self._audience.heard, held)

    def _servers(self) -> dict[str, Any]:
        assert self._store.servers is not None, "the demo runs its own servers"
        return self._store.servers

    # --- cold and warm --------------------------------------------------------------------------------------

    async def _cool_down(self) -> None:
        """Wait until the finished agents have left KV."""
        self._show.say("idle agents are evicted: PostgreSQL has their state, KV need not")
        until = time.monotonic() + _COLD_S_MAX
        while (await careful.patiently(self._store.stats)).kv_entries > 1:  # the newest one always stays
            if time.monotonic() > until:
                raise StuckError(f"idle entries were still in KV after {_COLD_S_MAX:.0f} s")
            await self._tell()
            await asyncio.sleep(_LOOK_S)

    async def _warm_up(self) -> dict[Place, str]:
        """Bring some agents back, and read them as anybody would; the fingerprint of every value."""
        names = sorted({agent for agent, key in self._book.promises if key == "report"})[:_WARMED_AGENTS]
        state: dict[Place, str] = {}
        brought = 0
        for name in names:
            agent = self._store.agent(name)
            brought += (await agent.hydrate()).keys
            state |= {(name, key): digest(value) async for key, value in agent.items()}
        self._show.say(f"{len(names)} agents were asked for again: {brought:,} entries hydrated from PostgreSQL")
        return state


def _lag(stats: cenote.Stats) -> dict[str, float | None]:
    return {"p50": stats.lag_ms_p50, "p95": stats.lag_ms_p95, "p99": stats.lag_ms_p99}
