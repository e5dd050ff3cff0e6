"""The one connection to NATS: requests with answers, subscriptions, and what a broken connection means.

- Every request ends: with its answer, with `NotSent` or `NoResponders` (nothing was accepted), or with
  `AnswerLost` (unknown).
- Nothing given to a connection outlives it (flow rule 7): no buffer is carried over a reconnect.
- `generation` counts the connections. What was read under one proves nothing under the next (F-conn).
"""

import asyncio
import contextlib
import json
import logging
import secrets
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult

from nats.aio.client import Client
from nats.errors import Error, UnexpectedEOF

from cenote import limits
from cenote.config import KvConfig
from cenote.errors import CenoteError, SetupError, UnavailableError
from cenote.kv.clock import ServerClock, parse_time_us
from cenote.kv.dial import CONNECT_TIMEOUT_S, Connection, dial, hang_up, plain, servers, tls_context
from cenote.kv.errors import NotSent, js_error
from cenote.kv.frame import frame
from cenote.kv.lane import Handler
from cenote.kv.mux import Multiplexer, Reply
from cenote.retry import Circuit

_INBOX_SID = 1_000_000  # nats-py counts its own subscriptions from 1
_CLOSED = "the link was closed"
_AWAY = "not connected to NATS"
_RETRY_S = (0.1, 0.15, 0.25, 0.25, 0.5)  # between rounds over all servers; the last one repeats
_log = logging.getLogger("cenote.kv")


class Subscription:
    """A subscription that survives reconnects; messages sent while there is no connection are missed."""

    def __init__(self, link: "Link", sid: int, subject: str, handler: Handler, queue: str) -> None:
        self._link = link
        self.sid = sid
        self.subject = subject
        self.handler = handler
        self.queue = queue

    def close(self) -> None:
        self._link._unsubscribe(self)


class Link:
    """One connection to NATS, kept up until `close()`.

    Attributes:
        generation: +1 at every successful connect.
        connected: whether requests can be sent now.
        server_id, server_version, max_payload: of the server connected to last.
        on_connect, on_disconnect: plain callables, called at once when it happens.
        clock: the server's; `server_now_ms` raises where it knows nothing.
    """

    def __init__(self, config: KvConfig, *, name: str, inbox_prefix: str = "_INBOX") -> None:
        self._config = config
        self.request_timeout_ms = config.request_timeout_ms
        self._name = name
        self._servers: list[SplitResult] = []
        self._tls: ssl.SSLContext | None = None
        self._inbox = f"{inbox_prefix}.{secrets.token_hex(11)}"
        self.generation = 0
        self.connected = False
        self.server_id = ""
        self.server_name = ""
        self.server_version = (0, 0, 0)
        self.max_payload = limits.PAYLOAD_BYTES_MAX
        self.on_connect: list[Callable[[], None]] = []
        self.on_disconnect: list[Callable[[], None]] = []
        self.clock = ServerClock()
        self._circuit = Circuit(config.outage_after_ms)
        self._connection: Connection | None = None
        self._subscriptions: dict[int, Subscription] = {}
        self._sids = _INBOX_SID
        self._down = asyncio.Event()
        self._closing = False
        self._keeper: asyncio.Task[None] | None = None
        self._denied: list[str] = []
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._ticking = False
        self._buffered = 0

    # --- the connection ----------------------------------------------------------------------------

    async def connect(self) -> None:
        """Connect to the first server that answers, and stay connected from then on.

        Raises:
            SetupError: wrong credentials, TLS or server version.
            UnavailableError: no server can be reached; nothing keeps running.
        """
        self._loop = asyncio.get_running_loop()
        self._mux = Multiplexer(self._inbox, self._loop, self._timed_out)
        self._servers, self._tls = servers(plain(self._config.url) or ""), tls_context(self._config)
        await self._connect_once()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Disconnect for good, once what was sent has arrived; what waits for an answer gets `AnswerLost`."""
        self._closing = True  # nats-py swallows a cancellation here and there: the flag ends the task then
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        connection = self._connection
        if connection is not None:
            self._flush()
            with contextlib.suppress(OSError, TimeoutError, Error):
                await connection.nc.flush(timeout=1)
            self._lost(connection.nc, _CLOSED)
            await hang_up(connection.nc)

    async def _connect_once(self) -> None:
        errors: list[CenoteError] = []
        for server in list(self._servers):
            try:
                connection = await dial(
                    server,
                    self._config,
                    self._tls,
                    name=self._name,
                    on_error=self._on_error,
                    on_closed=self._on_closed,
                    on_end=self._look,
                )
                await self._begin(connection)
            except (SetupError, UnavailableError) as error:
                errors.append(error)
                self._servers.append(self._servers.pop(0))  # next time begin with another one
            else:
                return
        raise next((error for error in errors if isinstance(error, SetupError)), errors[-1])

    async def _begin(self, connection: Connection) -> None:
        """Bring up the inbox and the subscriptions, then let requests flow."""
        nc, road = connection.nc, connection.road
        self._connection, self._denied = connection, []
        self._down.clear()
        road.subscribe(_INBOX_SID, self._inbox + ".*", self._mux.on_message)
        for subscription in self._subscriptions.values():
            road.subscribe(subscription.sid, subscription.subject, subscription.handler, subscription.queue)
        try:
            await self._confirm(nc)
        except BaseException:
            self._connection = None
            road.abort()
            await hang_up(nc)
            raise
        self.generation += 1
        self._mux.generation = self.generation
        self.server_version, self.max_payload = connection.server_version, connection.max_payload
        # Unknown is treated as new: a server start must never be missed (F-gen).
        self.server_id = connection.server_id or f"unknown-{self.generation}"
        self.server_name = connection.server_name
        self.clock.reset()
        self.connected = self._mux.heard = True
        self._circuit.answered()
        _log.info("connected to NATS %s, server %s", self._name, self.server_id)
        _call_all(self.on_connect)

    async def _confirm(self, nc: Client) -> None:
        """Wait until the server has taken the subscriptions."""
        try:
            await nc.flush(timeout=CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError, Error) as error:
            raise UnavailableError("NATS went away while the connection was set up") from error
        if self._down.is_set() or self._closing:
            raise UnavailableError("NATS closed the connection while it was set up")
        denied = next((words for words in self._denied if self._inbox.lower() in words.lower()), None)
        if denied:
            raise SetupError(f"NATS: {denied}", hint="the user must be allowed to subscribe to its inbox")

    async def _keep(self) -> None:
        while not self._closing:
            await self._down.wait()
            if self._connection is not None:
                await hang_up(self._connection.nc)
                self._connection = None
            waits = iter(_RETRY_S)
            while self._connection is None and not self._closing:
                try:
                    await self._connect_once()
                except CenoteError as error:
                    _log.debug("no connection to NATS: %s", error)
                except Exception:  # noqa: BLE001  the top of a task that must not end
                    _log.exception("no connection to NATS")
                if self._connection is None:
                    await asyncio.sleep(next(waits, _RETRY_S[-1]))

    async def _on_error(self, nc: Client, error: Exception) -> None:
        if isinstance(error, UnexpectedEOF):
            self._lost(nc, "the server closed the connection")
            return
        words = str(error)
        if "permissions violation" in words.lower():
            self._denied.append(words)
        _log.warning("NATS: %s", words or type(error).__name__)

    async def _on_closed(self, nc: Client) -> None:
        self._lost(nc, "the connection was closed")

    def _lost(self, nc: Client, why: str) -> None:
        """End everything that depends on this connection; called by whoever notices first."""
        connection = self._connection
        if connection is None or connection.nc is not nc or self._down.is_set():
            return
        self._down.set()
        connection.road.abort()
        was_connected, self.connected = self.connected, False
        self._circuit.failed()
        self._out.clear()
        self._out_bytes = 0
        self._mux.fail_all(why)
        if was_connected:
            _log.log(logging.INFO if why == _CLOSED else logging.WARNING, "disconnected from NATS: %s", why)
            _call_all(self.on_disconnect)

    def _timed_out(self) -> None:
        """Requests got no answer, and nothing else did since the last such moment: the server may be frozen."""
        if not self._mux.heard:
            self._circuit.failed()
        self._mux.heard = False
        self._look()

    @property
    def out(self) -> bool:
        """Whether NATS has been away for `kv.outage_after_ms`: requests are refused at once."""
        if self.connected and self._mux.heard:
            self._circuit.answered()
        return self._circuit.out

    def demand(self) -> None:
        """Raises NotSent while NATS is out."""
        if self._circuit.failing and self.out:
            raise self._away()

    async def knock(self, timeout_s: int) -> None:
        """See whether a server that is out, but connected, is back."""
        if self._connection is None or not self.connected:
            raise self._away()
        try:
            await self._connection.nc.flush(timeout=timeout_s)
        except (OSError, TimeoutError, Error):
            raise self._away() from None
        self._mux.heard = True

    def _away(self) -> NotSent:
        out = self.out
        words, hint = (f"NATS {self._circuit.words}", "is it up? see: cenote doctor") if out else (_AWAY, None)
        error = NotSent(words, tier="DISTRIBUTED_KV", hint=hint)
        error.lasting = out
        return error

    def _look(self) -> None:
        """Has nats-py given up? Asked when one of its tasks ends, and when a request gets no answer: nobody need look
        again and again, and a connection that breaks wakes us itself."""
        connection = self._connection
        if connection is not None and not connection.nc.is_connected:
            self._lost(connection.nc, "the connection broke or the server stopped answering")

    # --- requests ----------------------------------------------------------------------------------

    def request(self, subject: bytes | str, header: bytes, payload: bytes, timeout_ms: int) -> asyncio.Future[Reply]:
        """Send a request; the future ends with the answer or an error within `timeout_ms` + 50.

        header: b"" or whole lines ("Name: value\\r\\n") without preface and blank line.

        Raises:
            NotSent: not connected, NATS is out, or the write buffer is full; nothing was sent.
            RejectedError: too long for the server.
        """
        self.demand()
        token = self._mux.token()
        self._send_request(subject, token, header, payload)
        return self._mux.wait(token, timeout_ms)

    def request_many(self, subject: bytes | str, payload: bytes, timeout_ms: int) -> asyncio.Future[list[Reply]]:
        """The same for a request with many answers, of which the last is a status ("NATS/1.0 204 EOB" …)."""
        self.demand()
        token = self._mux.token()
        self._send_request(subject, token, b"", payload)
        return self._mux.gather(token, timeout_ms)

    def _send_request(self, subject: bytes | str, token: bytes, header: bytes, payload: bytes) -> None:
        if not self.connected:
            raise self._away()
        self._write(frame(subject, self._mux.prefix + token, header, payload, self.max_payload))

    def send(self, subject: bytes | str, reply: bytes, payload: bytes, header: bytes = b"") -> None:
        """Publish without an answer. Raises NotSent, RejectedError."""
        if not self.connected:
            raise self._away()
        self._write(frame(subject, b" " + reply if reply else b"", header, payload, self.max_payload))

    def send_raw(self, frames: bytes) -> None:
        """Send prebuilt PUB and HPUB frames, as for many acks at once. Raises NotSent."""
        if not self.connected:
            raise self._away()
        self._write(frames)

    def _write(self, frames: bytes) -> None:
        """The first of a tick leaves at once, for latency; the rest of the tick in one system call."""
        assert self._connection is not None
        road = self._connection.road
        if not self._ticking:
            self._buffered = road.buffered()
        if self._buffered + self._out_bytes > limits.WRITE_BUFFER_BYTES_MAX:
            raise NotSent("the write buffer to NATS is full", tier="DISTRIBUTED_KV")
        if self._ticking:
            self._out.append(frames)
            self._out_bytes += len(frames)
        else:
            self._ticking = True
            self._loop.call_soon(self._flush)
            road.write(frames)

    def _flush(self) -> None:
        self._ticking = False
        if self._out and self._connection is not None:
            self._connection.road.write(b"".join(self._out))
            self._out.clear()
            self._out_bytes = 0

    @property
    def in_flight(self) -> int:
        """Requests that wait for their answers."""
        return len(self._mux)

    async def api(
        self, subject: str, body: dict[str, Any] | None = None, timeout_ms: int | None = None
    ) -> dict[str, Any]:
        """A JetStream API call, `$JS.API.<subject>`; learns the server's time.

        Raises:
            JsError: JetStream's refusal, by kind; and whatever `request` raises.
        """
        payload = json.dumps(body).encode() if body is not None else b""
        timeout = timeout_ms or self._config.request_timeout_ms
        reply = await self.request("$JS.API." + subject, b"", payload, timeout)
        answer: dict[str, Any] = json.loads(reply.payload)
        if "error" in answer:
            error = answer["error"]
            raise js_error(error.get("code", 0), error.get("err_code", 0), error.get("description", ""))
        if "ts" in answer:
            self.learn_time(answer["ts"])
        return answer

    def new_inbox(self) -> str:
        """A subject below this link's own inbox, for a subscription that takes many answers."""
        self._sids += 1
        return f"{self._inbox}.sub.{self._sids}"

    # --- subscriptions -----------------------------------------------------------------------------

    def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        """`handler(subject, reply, header, payload)` for each message, now and after every reconnect. queue: of all
        subscriptions, of all processes, that name the same one, each message comes to one, by chance."""
        self._sids += 1
        subscription = Subscription(self, self._sids, subject, handler, queue)
        self._subscriptions[subscription.sid] = subscription
        if self._connection is not None and not self._down.is_set():
            self._connection.road.subscribe(subscription.sid, subject, handler, queue)
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        known = self._subscriptions.pop(subscription.sid, None)
        if known and self._connection is not None and not self._down.is_set():
            self._connection.road.unsubscribe(subscription.sid)

    # --- the server's time -------------------------------------------------------------------------

    def learn_time(self, ts: str) -> None:
        """Take a time from a JetStream answer that has just come in."""
        self.clock.learn(parse_time_us(ts.encode()) / 1000)

    def server_now_ms(self) -> int:
        """A lower bound of the server's clock, in ms since 1970; UnavailableError until one was learnt."""
        now_ms = self.clock.now_ms()
        if now_ms is None:
            raise UnavailableError("the server's time is not known yet", tier="DISTRIBUTED_KV")
        return now_ms


def _call_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in list(callbacks):
        try:
            callback()
        except Exception:  # noqa: BLE001  the top of a callback
            _log.exception("a connection callback failed")
