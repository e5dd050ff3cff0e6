"""What `doctor` looks at in NATS: reachable, credentials, JetStream, the buckets, who flushes, the clock."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from cenote.cli.findings import Finding, failed, ok, skipped, warning
from cenote.cli.greeting import cluster_warning, greeting
from cenote.config import Config
from cenote.engine.belonging import Look, look
from cenote.engine.epoch import CREATED_KEY, DURABLE_KEY, STORE_KEY, Epochs
from cenote.engine.fullness import BRIM_SHARE, FULL_SHARE
from cenote.engine.lease import Board, Lease
from cenote.errors import CenoteError, SetupError
from cenote.kv.bucket import StreamInfo, state_config, state_faults, stream_info, ttl_config, ttl_faults
from cenote.kv.consumer import consumer_info
from cenote.kv.dial import servers
from cenote.kv.errors import JsError, JsNotFound
from cenote.kv.link import Link
from cenote.model.entry import FORMAT
from cenote.naming import AGENT_STATE, QUERY_CACHE, SESSION_DATA

CLOCK_MS_MAX = 1_000
_ENABLE = "start nats-server with -js, or enable JetStream for this account"


@dataclass
class KvFacts:
    """What KV says of the store; None: unknown."""

    known: bool = False
    epochs: Epochs | None = None
    look: Look | None = None
    board: Board | None = None
    flusher_alive: bool = False
    dirty: int | None = None
    now_ms: int | None = None


class ExamineKv:
    """One look; `facts` are filled while the findings are iterated."""

    def __init__(self, config: Config | None) -> None:
        self._config = config
        self.facts = KvFacts()

    async def findings(self) -> AsyncIterator[Finding]:
        """In the order in which one thing stands on another; ends where nothing more can be looked at."""
        config = self._config
        if config is None or config.kv.url is None:
            yield skipped("nats", "does not run")
            return
        try:
            reachable = await _reachable(config)
        except SetupError as error:
            yield failed("nats", str(error.args[0]), "mend kv.url: --kv nats://host:port[,host:port …]")
            return
        for finding in reachable:
            yield finding
        if not any(finding.grade.value == "ok" for finding in reachable):
            return
        link = Link(config.kv, name="cenote-doctor")
        try:
            await link.connect()
        except CenoteError as error:
            yield failed(
                "nats login", str(error.args[0]), f"mend {error.hint or 'kv.url'}: --set kv.user=… --set kv.password=…"
            )
            return
        try:
            async for finding in self._within(config, link):
                yield finding
        finally:
            await link.close()

    async def look_again(self) -> None:
        """The stream as it is after PostgreSQL was looked at: a flush in between must not look like a rewind."""
        if self._config is None or not self.facts.known:
            return
        link = Link(self._config.kv, name="cenote-doctor")
        try:
            await link.connect()
            self.facts.look = await look(link, self._config.names)
        except CenoteError:
            return  # then nothing is compared
        finally:
            await link.close()

    async def _within(self, config: Config, link: Link) -> AsyncIterator[Finding]:
        yield ok("nats login", "accepted")
        try:
            account = await link.api("INFO")
        except CenoteError as error:
            yield failed("jetstream", str(error.args[0]), _ENABLE)
            return
        yield ok("jetstream", f"{account.get('streams', 0)} streams, {account.get('storage', 0):,} bytes stored")
        yield _room(account)
        hint = await cluster_warning(config)
        if hint is not None:
            yield warning("replicas", hint.partition(" (")[0], "cenote up / open with --set kv.replicas=3")
        names = config.names
        state = state_config(names, config.kv, link.server_version)
        wanted = {
            AGENT_STATE: state,
            SESSION_DATA: ttl_config(names, SESSION_DATA, config.kv),
            QUERY_CACHE: ttl_config(names, QUERY_CACHE, config.kv, config.cache.ttl_s) | {"discard": "old"},
        }
        self.facts.known = True
        for bucket, settings in wanted.items():
            finding, info = await _bucket(link, bucket, settings)
            yield finding
            if bucket == AGENT_STATE and info is not None:
                await self._learn(config, link, info)
                yield _fill(info)
        yield _clock(link, self.facts)
        if self.facts.epochs is not None:
            yield _flusher(self.facts)
            yield _formats(self.facts)

    async def _learn(self, config: Config, link: Link, info: StreamInfo) -> None:
        facts, names = self.facts, config.names
        facts.epochs = Epochs.from_metadata(info.metadata, info.created)
        durable = info.metadata.get(DURABLE_KEY)
        try:
            consumer = None if durable is None else await consumer_info(link, info.config["name"], durable)
            facts.dirty = info.messages if consumer is None else consumer.pending + consumer.ack_pending
            facts.board = await Lease(link, names, "doctor").read()
        except CenoteError:
            return  # the bucket's own finding says what is wrong
        facts.flusher_alive = (
            facts.board is not None and facts.board.holder != "" and facts.board.alive(link.server_now_ms())
        )


def _room(account: dict[str, Any]) -> Finding:
    """What the account may store; the disk's own end the server tells nobody before it is there."""
    most = account.get("limits", {}).get("max_storage", -1)
    stored, reserved = account.get("storage", 0), account.get("reserved_storage", 0)
    if most is None or most < 0:
        return ok("storage", f"{stored:,} bytes; the account has no limit")
    text = f"{stored:,} bytes stored, {reserved:,} reserved, of {most:,} that the account may store"
    if max(stored, reserved) > most * BRIM_SHARE:
        return warning("storage", text, "raise the account's JetStream limit (max_file), or lower --set kv.bytes_max=…")
    return ok("storage", text)


def _fill(info: StreamInfo) -> Finding:
    most = info.config.get("max_bytes", -1)
    if most <= 0:
        return ok("fill", f"{info.bytes:,} bytes; the stream has no limit")
    text = f"{info.bytes / most:.0%} of {most:,} bytes"
    if info.bytes <= most * BRIM_SHARE:
        return ok("fill", text)
    to_type = f"cenote serve, so that it drains; for more room: nats stream edit {info.config['name']} --max-bytes=…"
    return failed("fill", f"{text}; writes are refused where they would exceed {FULL_SHARE:.0%}", to_type)


def _formats(facts: KvFacts) -> Finding:
    board = facts.board or Board()
    if board.unknown_formats == 0:
        return ok("formats", f"this cenote reads formats up to {FORMAT}")
    found = f"the flusher, pid {board.pid} on {board.host}, met entries newer than format {board.reads}, which wait"
    return failed("formats", found, "pip install --upgrade cenote where it runs, then: cenote serve")


async def _reachable(config: Config) -> list[Finding]:
    assert config.kv.url is not None
    found: list[Finding] = []
    for server in servers(config.kv.url.get_secret_value()):
        place = f"{server.hostname}:{server.port}"
        try:
            info = await greeting(str(server.hostname), server.port or 4222)
        except CenoteError as error:
            found.append(failed("nats", str(error.args[0]), "is it running there? mend kv.url: --kv nats://host:port"))
        else:
            found.append(ok("nats", f"{info.get('version')} at {place}"))
    return found


def _clock(link: Link, facts: KvFacts) -> Finding:
    try:
        facts.now_ms = link.server_now_ms()
    except CenoteError:
        return skipped("clock of nats", "not told")
    apart_ms = facts.now_ms - time.time_ns() // 1_000_000
    text = f"{apart_ms:+} ms from this machine's"
    if abs(apart_ms) > CLOCK_MS_MAX:
        return warning(
            "clock of nats", text, "synchronise the clocks (chrony, ntpd); cenote orders by the server's alone"
        )
    return ok("clock of nats", text)


async def _bucket(link: Link, bucket: str, wanted: dict[str, object]) -> tuple[Finding, StreamInfo | None]:
    stream = str(wanted["name"])
    try:
        info = await stream_info(link, stream)
    except JsNotFound:
        return skipped(bucket, f"stream {stream} does not exist yet", "made by the first store that opens"), None
    except (JsError, CenoteError) as error:
        return failed(bucket, str(error.args[0]), f"may this user ask for stream {stream}?"), None
    judge = state_faults if bucket == AGENT_STATE else ttl_faults
    faults = judge(info.config, wanted)
    if faults:
        return failed(bucket, f"{stream} would lose data: {'; '.join(faults)}", _mend(stream)), info
    copies = info.config.get("num_replicas", 1)
    foreign = bucket == AGENT_STATE and STORE_KEY not in info.metadata and CREATED_KEY not in info.metadata
    note = ", belongs to no store yet" if foreign else ""
    return ok(bucket, f"{info.messages:,} entries, {info.bytes:,} bytes, {copies} replica(s){note}"), info


def _mend(stream: str) -> str:
    return f"nats stream edit {stream}, or another --namespace, or another --kv"


def _flusher(facts: KvFacts) -> Finding:
    dirty = facts.dirty or 0
    if facts.flusher_alive and facts.board is not None:
        down = "" if facts.board.sql_down_since_ms is None else "; PostgreSQL does not take its flushes"
        text = f"pid {facts.board.pid} on {facts.board.host}, {dirty} entries wait{down}"
        return warning("flusher", text, "see the lines about PostgreSQL below") if down else ok("flusher", text)
    if dirty:
        return failed("flusher", f"no process flushes, {dirty} entries wait", "cenote serve (or: cenote flush)")
    return ok("flusher", "nobody flushes, nothing waits")
