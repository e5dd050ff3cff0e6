"""Spans for OpenTelemetry, by its stable conventions for databases; made only where `telemetry.traces` asks for them.

This needs OpenTelemetry's interface alone; without an SDK in the program its spans do nothing. They say which verb, on
which stream or table, for which agent, and which class of error ended it; they never hold a key, a value or the words
of an error. Where traces are off nothing here is even imported, and no verb is wrapped.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Sized
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode

from cenote.config import Config
from cenote.kv.dial import servers
from cenote.naming import AGENT_STATE

T = TypeVar("T")

_NATS, _POSTGRESQL = "nats", "postgresql"
_NATS_PORT, _POSTGRESQL_PORT = 4222, 5432
VERBS: Final = {
    "put": _NATS, "put_many": _NATS, "get": _NATS, "get_many": _NATS, "entry": _NATS, "update": _NATS, "merge": _NATS,
    "delete": _NATS, "flush": _POSTGRESQL, "hydrate": _POSTGRESQL, "prefetch": _POSTGRESQL, "sleep": _NATS,
    "checkpoint": _POSTGRESQL, "restore": _POSTGRESQL, "fork": _POSTGRESQL,
}  # fmt: skip
"""The verbs of an agent that have a span, and the server that they are mostly about."""
# The convention's own advice for this histogram.
_BUCKETS_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)


class _Place(NamedTuple):
    """Where an operation happens: the attributes that all operations there have, and what stands behind their names."""

    attributes: dict[str, str | int]
    collection: str


class Spans:
    """The spans, and the histogram `db.client.operation.duration`, of one store."""

    def __init__(self, config: Config) -> None:
        self._tracer = trace.get_tracer("cenote")
        self._durations = metrics.get_meter("cenote").create_histogram(
            "db.client.operation.duration", "s", "How long operations took.",
            explicit_bucket_boundaries_advisory=_BUCKETS_S,
        )  # fmt: skip
        self._places = {_NATS: _nats(config), _POSTGRESQL: _postgresql(config)}

    def verbs_of(self, agent: type[T]) -> type[T]:
        """The class with every verb of `VERBS` within a span; it needs a `name`."""
        verbs = {verb: self._within(getattr(agent, verb), verb, system) for verb, system in VERBS.items()}
        return type(agent.__name__, (agent,), {"__doc__": agent.__doc__, "__module__": agent.__module__, **verbs})

    async def flushing(self, flush: Awaitable[T], rows: int) -> T:
        """Await the flush of one batch within a span that has no parent: the flusher's tasks inherit the context in
        which the store was opened, and what it flushes for days is no part of that."""
        with self._span("flush_batch", _POSTGRESQL, size=rows, parent=Context()):
            return await flush

    def _within(self, plain: Callable[..., Awaitable[Any]], verb: str, system: str) -> Callable[..., Awaitable[Any]]:
        @wraps(plain)
        async def traced(agent: Any, *args: Any, **named: Any) -> Any:
            many = args[0] if args and verb.endswith("_many") and isinstance(args[0], Sized) else ()
            with self._span(verb, system, agent=agent.name, size=len(many)):
                return await plain(agent, *args, **named)

        return traced

    @contextmanager
    def _span(
        self, operation: str, system: str, *, agent: str | None = None, size: int = 0, parent: Context | None = None
    ) -> Iterator[None]:
        place = self._places[system]
        told = place.attributes | {"db.operation.name": operation}
        own: dict[str, str | int] = {} if agent is None else {"gen_ai.agent.id": agent}
        if size > 1:  # by the convention one operation is no batch
            own["db.operation.batch.size"] = size
        began_s = time.monotonic()
        with self._tracer.start_as_current_span(
            f"{operation} {place.collection}", parent, SpanKind.CLIENT, told | own, record_exception=False,
            set_status_on_exception=False,
        ) as span:  # fmt: skip
            try:
                yield
            except BaseException as error:
                told["error.type"] = type(error).__name__
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))  # without a text: it could quote what was written
                raise
            finally:
                self._durations.record(time.monotonic() - began_s, told)


def _nats(config: Config) -> _Place:
    url = config.kv.url.get_secret_value() if config.kv.url else ""
    first = servers(url)[0]
    collection = config.names.stream(AGENT_STATE)
    place = _address(first.hostname, first.port or _NATS_PORT)
    return _Place(place | _named(_NATS, collection, config.namespace), collection)


def _postgresql(config: Config) -> _Place:
    parts = urlsplit(config.sql.url.get_secret_value() if config.sql.url else "")
    host, _, port = parts.netloc.rpartition("@")[2].partition(",")[0].rpartition(":")  # of several hosts the first
    if not host:
        host, port = port, ""
    collection = f"{config.names.schema_name('agents')}.state"
    place = _address(host.strip("[]"), int(port) if port.isdigit() else _POSTGRESQL_PORT)
    return _Place(place | _named(_POSTGRESQL, collection, parts.path.strip("/")), collection)


def _named(system: str, collection: str, namespace: str) -> dict[str, str | int]:
    found: dict[str, str | int] = {"db.system.name": system, "db.collection.name": collection}
    return found | ({"db.namespace": namespace} if namespace else {})


def _address(host: str | None, port: int) -> dict[str, str | int]:
    return {"server.address": host, "server.port": port} if host else {}
