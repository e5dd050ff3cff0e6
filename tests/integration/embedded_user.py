"""Users of embedded servers: here in the test, or as processes of their own that a test may kill."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import asyncpg
import nats
from nats.aio.client import Client

from cenote import embedded
from cenote.embedded import NatsAddress, Servers, process
from cenote.embedded.process import Process

POSTGRES_BIN = os.environ.get("CENOTE_EMBEDDED__POSTGRES_BIN") or None
NOBODY = 65534

SCRIPT = """
import asyncio, concurrent.futures.thread, json, os, sys
from cenote import embedded
from cenote.errors import ServerStartError

options = json.loads(sys.argv[1])
hang, uid = options.pop("hang"), options.pop("uid")
if uid is not None:  # everything is imported by now: the new user may not be able to read our Python
    "127.0.0.1".encode("idna")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.environ["HOME"] = "/nonexistent"

def say(what):
    print(json.dumps(what), flush=True)

async def recover(address, dsn):
    say({"recovering": address.url})
    await asyncio.sleep(3600 if hang else 0)

async def main():
    try:
        servers = await embedded.acquire(
            nats=True, postgres=True, sync_interval_ms=200, recover=recover, **options
        )
    except ServerStartError as error:
        return say({"error": str(error)})
    say(servers.info())
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await servers.release()
    say("left")

asyncio.run(main())
"""


class User:
    """A process that uses a data directory until it is told to leave, or is killed."""

    def __init__(self, data_dir: Path | str, *, hang: bool = False, uid: int | None = None, **options: str) -> None:
        given = {"data_dir": str(data_dir), "postgres_bin": POSTGRES_BIN, "hang": hang, "uid": uid, **options}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the user ended without a word"
        return json.loads(line)

    async def says(self) -> Any:
        """The next thing it says: what it recovers, its servers, an error, or that it left."""
        return await asyncio.to_thread(self._read)

    async def leave(self) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        assert await self.says() == "left"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Recovery:
    """A stand-in for the engine's recovery that says when it was called, and fails when told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[NatsAddress, str]] = []
        self.error: Exception | None = None
        self.also: Callable[[], None] = lambda: None

    async def __call__(self, address: NatsAddress, dsn: str) -> None:
        self.calls.append((address, dsn))
        self.also()
        await (await connect(address)).close()
        if self.error is not None:
            raise self.error


async def use(data_dir: Path | str, recover: Recovery | None = None, **options: Any) -> Servers:
    given = {"nats": True, "postgres": True, "sync_interval_ms": 200, "postgres_bin": POSTGRES_BIN, **options}
    return await embedded.acquire(data_dir=data_dir, recover=recover or Recovery(), **given)


async def connect(address: NatsAddress | None, **options: Any) -> Client:
    assert address
    return await nats.connect(address.url, user=address.user, password=address.password, **options)


async def query(servers: Servers, sql: str) -> Any:
    """The first value of one query, over a connection of its own."""
    link = await asyncpg.connect(servers.sql_dsn)
    try:
        return await link.fetchval(sql)
    finally:
        await link.close()


def identity(info: dict[str, Any], name: str) -> Process:
    """The server an `info` speaks of, while it lives."""
    pid = info[name]["pid"]
    began = process._began(pid)
    assert began
    return Process(pid, began)


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)
