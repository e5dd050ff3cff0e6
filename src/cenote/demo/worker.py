"""A worker process of the swarm: hosts several agents at a time, one for each module that it is given to survey.

The modules are tasks. A worker takes one for a short lease, writes down each finding as state of the module's agent,
and after each how far it has come; whoever gets the task of a killed worker goes on after the last acknowledged step.
The end is one transaction: messages, facts, and that the task is done, or nothing of it.
"""

import asyncio
import sys
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import msgspec

import cenote
from cenote.demo import careful, shared, survey
from cenote.demo.journal import Journal
from cenote.demo.pool import open_store
from cenote.demo.telling import LEASE_S, TASK, telling

AGENTS_AT_A_TIME = 4


class Orders(msgspec.Struct, frozen=True):
    """What the conductor tells a worker when it starts."""

    name: str
    run: str
    journal: str
    data_dir: str


class Worker:
    """One process of the swarm."""

    def __init__(self, orders: Orders, store: cenote.Store) -> None:
        self._orders = orders
        self._store = store
        self._journal = Journal(Path(orders.journal))
        self._mine = {"run": orders.run, "by": orders.name}
        self._modules = {module.name: module for module in survey.modules()}

    async def work(self, leave: asyncio.Event) -> None:
        """Take tasks and do them, some at a time, until it is told to leave."""
        async with asyncio.TaskGroup() as group:
            hosts = [group.create_task(self._host()) for _ in range(AGENTS_AT_A_TIME)]
            await leave.wait()
            for host in hosts:
                host.cancel()
        stats = await careful.patiently(self._store.stats)
        self._journal.event("left", self._orders.name, stats.hydrated)

    async def _host(self) -> None:
        while True:
            try:
                async with aclosing(self._store.tasks.work(TASK, worker=self._orders.name, lease=LEASE_S)) as jobs:
                    async for job in jobs:
                        async with job:
                            await self._survey(job)
            except cenote.UnavailableError:  # PostgreSQL was away when it asked for the first time
                await asyncio.sleep(careful.PAUSE_S)

    async def _survey(self, job: cenote.Job) -> None:
        """Do a task. A ConflictError says that another worker has it by now, and ends it here."""
        module = self._modules[job.payload["module"]]
        self._journal.event("taken", module.name, job.task.attempts)
        steps = survey.steps(module.path.read_bytes())
        try:
            await self._write_down(job, module, steps)
            await self._settle(job, module, steps)
        except cenote.ConflictError:
            self._journal.event("late", module.name, job.task.attempts)
            raise
        self._journal.event("finished", module.name, len(steps))

    async def _write_down(self, job: cenote.Job, module: survey.Module, steps: list[survey.Step]) -> None:
        """Write down every step that is not done yet, and after each how far we are."""
        agent = self._store.agent(module.name)
        before = await careful.look(agent, "progress")
        resumed = before is not None and before.value["run"] == self._orders.run
        done = before.value["done"] if before is not None and resumed else 0
        self._journal.event("resumed" if resumed else "begun", module.name, done)
        for number, step in enumerate(steps[done:], done + 1):
            if job.lost:
                raise cenote.ConflictError(f"task {job.task.id}: its lease was over")
            await careful.put(self._journal, agent, step.key, step.value)
            if number == len(steps):
                await self._tell_all(module, steps)
            progress = {"done": number, "of": len(steps), "last": step.key}
            await careful.put(self._journal, agent, "progress", self._mine | progress)

    async def _tell_all(self, module: survey.Module, steps: list[survey.Step]) -> None:
        """Add to what all workers write together. Before the last progress: a module that counts as finished is in."""
        everybody = self._store.agent(shared.agent(self._orders.run))
        found, name = Counter(step.kind for step in steps), module.name
        count, add = shared.counting(found, name), shared.adding(name)
        await careful.share(self._journal, everybody, shared.FINDINGS, count, cenote.ORMap(), found)
        await careful.share(self._journal, everybody, shared.SURVEYED, add, cenote.ORSet(), [name])

    async def _settle(self, job: cenote.Job, module: survey.Module, steps: list[survey.Step]) -> None:
        """Say what was found, and that the task is done: all of it, or nothing, and only while the task is ours."""
        found = telling(self._orders.run, module, steps)

        async def settle(tx: cenote.Transaction) -> None:
            await job.complete({"findings": len(steps)}, tx=tx)
            await self._store.knowledge.add_many(found.facts, tx=tx)
            await self._store.messages.send_many(found.messages, tx=tx)

        intent = self._journal.tell(module.name, found.parts())
        try:
            await careful.patiently(lambda: self._store.transact(settle))
        except cenote.ConflictError:
            self._journal.refused(intent)
            raise
        self._journal.told(intent)


def _told_to_leave() -> asyncio.Event:
    """Set when our input ends: the conductor closes it, and if he dies, it is closed as well."""
    loop, leave, source = asyncio.get_running_loop(), asyncio.Event(), sys.stdin.fileno()

    def ended() -> None:
        loop.remove_reader(source)
        leave.set()

    loop.add_reader(source, ended)
    return leave


async def _main(orders: Orders) -> None:
    async with open_store(orders.data_dir, flush__enabled=False) as store:
        await Worker(orders, store).work(_told_to_leave())


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=Orders)))
