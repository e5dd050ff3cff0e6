"""The worker processes: started, killed, replaced, and awaited."""

import asyncio
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cenote.demo.journal import Book
from cenote.demo.worker import Orders


class WorkerFailedError(Exception):
    """A worker ended by itself, with an error; the message ends with what it said last."""


@dataclass
class Member:
    """One worker process."""

    name: str
    process: asyncio.subprocess.Process
    journal: Path
    log: Path
    killed: bool = False


class Swarm:
    """All workers of a run, their journals and logs in one folder."""

    def __init__(self, folder: Path, run: str, data_dir: str) -> None:
        self._folder = folder
        self._run = run
        self._data_dir = data_dir
        self.members: list[Member] = []

    async def start(self) -> Member:
        """One more worker."""
        name = f"worker-{len(self.members) + 1}"
        journal, log = self._folder / f"{name}.journal", self._folder / f"{name}.log"
        journal.touch()
        orders = Orders(name, self._run, str(journal), self._data_dir)
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cenote.demo.worker", msgspec.json.encode(orders).decode(),
                stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output,
                start_new_session=True,  # Ctrl-C is for the conductor, which ends its workers
            )  # fmt: skip
        member = Member(name, process, journal, log)
        self.members.append(member)
        return member

    def victim(self, book: Book) -> Member | None:
        """The running worker with the most agents half-way."""
        running = [member for member in self.members if member.process.returncode is None]
        member = max(running, key=lambda one: len(book.halfway(one.journal)), default=None)
        return member if member is not None and book.halfway(member.journal) else None

    async def kill(self, member: Member) -> None:
        """SIGKILL: no handler runs, nothing is said goodbye to."""
        member.killed = True
        member.process.send_signal(signal.SIGKILL)
        await member.process.wait()

    def dismiss(self) -> None:
        """Tell all workers that there is nothing left to do."""
        for member in self.members:
            if member.process.stdin is not None:
                member.process.stdin.close()

    def finished(self) -> bool:
        """Whether all workers have left. Raises WorkerFailedError for one that we did not kill and that failed."""
        for member in self.members:
            if member.process.returncode and not member.killed:
                said = member.log.read_text(errors="replace")[-1500:]
                raise WorkerFailedError(f"{member.name} ended with {member.process.returncode}:\n{said}")
        return all(member.process.returncode is not None for member in self.members)

    async def stop(self) -> None:
        """End whoever still runs, because the demo ends early."""
        for member in self.members:
            if member.process.returncode is None:
                await self.kill(member)
