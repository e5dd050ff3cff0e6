"""A private cluster of three nats-servers with JetStream, for what followers and elections do: 127.0.0.1, free ports,
a directory and a password of its own.

With gates the third server reaches the other two through proxies that know the frames of a route. They can hold what
the servers tell each other of their logs and let everything else through: then the third one answers direct gets from
what it had, while the leader can still be asked through it; a follower that surely lags, by no luck. With everything
held it is a minority partition.
"""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from kv_server import USER, KvServer

from cenote.errors import CenoteError
from cenote.kv.link import Link
from cenote.sections import KvConfig, Url
from cenote.testing import FaultProxy

_LAGGARD = 2


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, each another one."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Gate(FaultProxy):
    """A proxy before a route port that can hold the servers' replication alone."""

    def __init__(self, route_port: int) -> None:
        super().__init__(route_port)
        self._replicating = True
        self._held: list[tuple[asyncio.StreamWriter, bytes]] = []

    @property
    def held(self) -> int:
        """How many frames are being held; a test asserts with it that its fault did hit."""
        return len(self._held)

    def hold_replication(self) -> None:
        """Let nothing through that a log is replicated with, until `heal()`; nothing is lost."""
        self._replicating = False

    def heal(self) -> None:
        """Let everything through again, what was held first."""
        self._replicating = True
        held, self._held = self._held, []
        for writer, frame in held:
            writer.write(frame)
        super().heal()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: tuple[asyncio.StreamWriter, ...],
        *, asking: bool,
    ) -> None:  # fmt: skip
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = line = await reader.readuntil(b"\r\n")
                if line.startswith((b"RMSG ", b"HMSG ")):
                    frame += await reader.readexactly(int(line.split()[-1]) + 2)
                await self._open.wait()
                if b" $NRG." in line and not self._replicating:
                    self._held.append((writer, frame))
                    continue
                writer.write(frame)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()


class Node(KvServer):
    """One server of a cluster."""

    def __init__(self, directory: Path, name: str, password: str, route_port: int, routes: Sequence[int]) -> None:
        directory.mkdir(parents=True)
        super().__init__(directory)
        self.name, self.password = name, password
        targets = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in routes)
        self._config.write_text(
            f'listen: "127.0.0.1:{self.port}"\nserver_name: {name}\n'
            f'jetstream {{ store_dir: "{directory / "store"}", sync_interval: 200ms, max_file_store: 1TB }}\n'
            # 127.0.0.1:1 refuses: nobody finds a way around the routes given here.
            f'cluster {{ name: test, listen: "127.0.0.1:{route_port}", advertise: "127.0.0.1:1", no_advertise: true,'
            f" pool_size: 1, routes: [{targets}] }}\n"
            f"accounts {{\n  APP {{ jetstream: enabled, users: [ {{ user: {USER}, password: {password} }} ] }}\n"
            f"  $SYS {{ users: [ {{ user: system, password: {password} }} ] }}\n}}\n"
        )


class Cluster:
    """Three servers; the third behind gates where that is wanted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.password = f"p{secrets.token_hex(8)}"  # nats.conf takes a bare 7 for a number
        self.nodes: list[Node] = []
        self.gates: list[Gate] = []

    async def start(self, *, gated: bool = False) -> None:
        """Start all three; they elect while the first client comes."""
        ports = free_ports(3)
        self.gates = [Gate(port) for port in ports[:_LAGGARD]] if gated else []
        for gate in self.gates:
            await gate.__aenter__()
        routes = [[ports[1]], [ports[0]], [gate.port for gate in self.gates] or ports[:_LAGGARD]]
        for index, (port, targets) in enumerate(zip(ports, routes, strict=True)):
            name = f"n{index}"
            self.nodes.append(Node(self.directory / name, name, self.password, port, targets))
        await asyncio.gather(*(asyncio.to_thread(node.start) for node in self.nodes))

    async def stop(self) -> None:
        """End all servers and gates."""
        await asyncio.gather(*(asyncio.to_thread(node.stop) for node in self.nodes))
        for gate in self.gates:
            await gate.__aexit__(None, None, None)

    def config(self, *only: int, **changes: Any) -> KvConfig:
        """The `kv` section for these servers only; without any, for all."""
        return KvConfig(url=Url(self._url(only)), user=USER, password=self.password, replicas=3, **changes)

    def settings(self, *only: int, first: int = 0) -> dict[str, Any]:
        """The same as overrides of `cenote.open()`; first: the server that is tried before the others."""
        url = self._url(only or sorted(range(3), key=lambda index: index != first))
        return {"kv": url, "kv__user": USER, "kv__password": self.password, "kv__replicas": 3}

    def _url(self, only: Sequence[int]) -> str:
        return ",".join(self.nodes[index].url for index in only or range(3))

    def node(self, name: str) -> Node:
        """The server of this name."""
        return next(node for node in self.nodes if node.name == name)

    async def lead(self, stream: str, wanted: int) -> None:
        """Make one server the leader of a stream and of the cluster's own affairs."""
        name = self.nodes[wanted].name
        async with asyncio.timeout(30):
            await self._move(USER, f"STREAM.LEADER.STEPDOWN.{stream}", name)
            await self._move("system", "META.LEADER.STEPDOWN", name)

    async def _move(self, user: str, step_down: str, name: str) -> None:
        link = Link(self.config().model_copy(update={"user": user}), name="mover")
        await link.connect()
        try:
            while True:
                try:
                    await link.api(step_down, {"placement": {"preferred": name}}, 2000)
                except CenoteError as error:
                    if "already leader" in str(error):
                        return
                await asyncio.sleep(0.05)
        finally:
            await link.close()


@contextlib.asynccontextmanager
async def cluster(directory: Path, *, gated: bool = False) -> AsyncIterator[Cluster]:
    """Three servers for the length of the block."""
    servers = Cluster(directory)
    try:
        await servers.start(gated=gated)
        yield servers
    finally:
        await servers.stop()
