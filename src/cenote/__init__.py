"""cenote: the state layer for agent swarms.

    async with cenote.open() as store:
        scout = store.agent("scout-7")
        receipt = await scout.put("plan", {"goal": "map the cave"})
        await receipt.durable()

Everything a program needs is importable from here; nothing else is promised. Imports are lazy, so that a program that
only catches errors or starts a command line does not pay for the drivers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from cenote import blocking as blocking
    from cenote import conflict as conflict
    from cenote.agent import AgentState as AgentState
    from cenote.config import Config as Config
    from cenote.conflict import Resolution as Resolution
    from cenote.conflict import Side as Side
    from cenote.conflict import Strategy as Strategy
    from cenote.conflict import resolve as resolve
    from cenote.engine.bed import Slept as Slept
    from cenote.engine.checkpoint import Checkpoint as Checkpoint
    from cenote.engine.conflict_log import Conflict as Conflict
    from cenote.engine.counters import SwarmCounter as SwarmCounter
    from cenote.engine.hydrator import Hydrated as Hydrated
    from cenote.engine.hydrator import Progress as Progress
    from cenote.engine.lifecycle import LifecycleEvent as LifecycleEvent
    from cenote.engine.monitor import Stats as Stats
    from cenote.engine.past import Difference as Difference
    from cenote.engine.past import History as History
    from cenote.engine.receipt import Receipt as Receipt
    from cenote.engine.restored import Restored as Restored
    from cenote.engine.restored import Restoring as Restoring
    from cenote.engine.tiered import CacheCounts as CacheCounts
    from cenote.engine.transfer import Imported as Imported
    from cenote.errors import AlreadyExistsError as AlreadyExistsError
    from cenote.errors import BackpressureError as BackpressureError
    from cenote.errors import CenoteError as CenoteError
    from cenote.errors import CodecError as CodecError
    from cenote.errors import ConflictError as ConflictError
    from cenote.errors import ConsistencyError as ConsistencyError
    from cenote.errors import ExpiredError as ExpiredError
    from cenote.errors import LifecycleError as LifecycleError
    from cenote.errors import NotDurableError as NotDurableError
    from cenote.errors import NotFoundError as NotFoundError
    from cenote.errors import OutcomeUnknownError as OutcomeUnknownError
    from cenote.errors import PartialError as PartialError
    from cenote.errors import PoolTimeoutError as PoolTimeoutError
    from cenote.errors import RejectedError as RejectedError
    from cenote.errors import ServerStartError as ServerStartError
    from cenote.errors import SetupError as SetupError
    from cenote.errors import TransactionError as TransactionError
    from cenote.errors import UnavailableError as UnavailableError
    from cenote.errors import UnresolvedError as UnresolvedError
    from cenote.health import Check as Check
    from cenote.health import Health as Health
    from cenote.health import Readiness as Readiness
    from cenote.health import Verdict as Verdict
    from cenote.lifecycle import Event as Event
    from cenote.lifecycle import Phase as Phase
    from cenote.model.clock import HybridClock as HybridClock
    from cenote.model.clock import VectorClock as VectorClock
    from cenote.model.clocked import Clocked as Clocked
    from cenote.model.entry import Entry as Entry
    from cenote.model.entry import Tier as Tier
    from cenote.model.entry import Version as Version
    from cenote.model.merging import AppendLog as AppendLog
    from cenote.model.merging import GCounter as GCounter
    from cenote.model.merging import GSet as GSet
    from cenote.model.merging import LWWRegister as LWWRegister
    from cenote.model.merging import MVRegister as MVRegister
    from cenote.model.merging import ORMap as ORMap
    from cenote.model.merging import ORSet as ORSet
    from cenote.model.merging import PNCounter as PNCounter
    from cenote.model.merging.document import Document as Document
    from cenote.repositories.agents import Agent as Agent
    from cenote.repositories.agents_content import StateHit as StateHit
    from cenote.repositories.knowledge_embedder import Embedder as Embedder
    from cenote.repositories.knowledge_embedder import register_embedder as register_embedder
    from cenote.repositories.knowledge_entity import Fact as Fact
    from cenote.repositories.knowledge_entity import Found as Found
    from cenote.repositories.knowledge_entity import NewFact as NewFact
    from cenote.repositories.knowledge_index import VectorIndexState as VectorIndexState
    from cenote.repositories.messages_entity import Message as Message
    from cenote.repositories.messages_entity import NewMessage as NewMessage
    from cenote.repositories.sessions import Session as Session
    from cenote.repositories.tasks_entity import NewTask as NewTask
    from cenote.repositories.tasks_entity import Task as Task
    from cenote.repositories.tasks_work import Job as Job
    from cenote.result import DataResult as DataResult
    from cenote.result import attempt as attempt
    from cenote.routing import Category as Category
    from cenote.routing import Route as Route
    from cenote.sql.transaction import Isolation as Isolation
    from cenote.sql.transaction import Transaction as Transaction
    from cenote.storage import DataStorage as DataStorage
    from cenote.storage import Match as Match
    from cenote.store import Opening
    from cenote.store import Store as Store

_HOMES = {
    "AgentState": "agent",
    "Config": "config",
    "Entry": "model.entry",
    "Health": "health",
    "Hydrated": "engine.hydrator",
    "Receipt": "engine.receipt",
    "Stats": "engine.monitor",
    "Store": "store",
    "Tier": "model.entry",
    "Verdict": "health",
    "Version": "model.entry",
} | dict.fromkeys(
    (
        "AlreadyExistsError",
        "BackpressureError",
        "CenoteError",
        "CodecError",
        "ConflictError",
        "ConsistencyError",
        "ExpiredError",
        "NotDurableError",
        "NotFoundError",
        "OutcomeUnknownError",
        "PartialError",
        "PoolTimeoutError",
        "RejectedError",
        "ServerStartError",
        "SetupError",
        "UnavailableError",
    ),
    "errors",
)

# Reachable by name, beside the thirty of everyday use (docs/merging.md).
_BESIDE = {
    "Conflict": "engine.conflict_log",
    "Imported": "engine.transfer",
    "Restored": "engine.restored",
    "Checkpoint": "engine.checkpoint",
    "Difference": "engine.past",
    "History": "engine.past",
    "Restoring": "engine.restored",
    "Resolution": "conflict",
    "Side": "conflict",
    "Strategy": "conflict",
    "resolve": "conflict",
    "Agent": "repositories.agents",
    "StateHit": "repositories.agents_content",
    "Embedder": "repositories.knowledge_embedder",
    "register_embedder": "repositories.knowledge_embedder",
    "Fact": "repositories.knowledge_entity",
    "Found": "repositories.knowledge_entity",
    "NewFact": "repositories.knowledge_entity",
    "VectorIndexState": "repositories.knowledge_index",
    "Message": "repositories.messages_entity",
    "NewMessage": "repositories.messages_entity",
    "Job": "repositories.tasks_work",
    "NewTask": "repositories.tasks_entity",
    "Task": "repositories.tasks_entity",
    "AgentLag": "engine.unflushed",
    "Check": "health",
    "Dirty": "engine.unflushed",
    "MemoryStats": "engine.monitor",
    "Readiness": "health",
    "Window": "engine.lag",
    "SwarmCounter": "engine.counters",
    "Event": "lifecycle",
    "LifecycleError": "errors",
    "LifecycleEvent": "engine.lifecycle",
    "Phase": "lifecycle",
    "Progress": "engine.hydrator",
    "Slept": "engine.bed",
    "TransactionError": "errors",
    "UnresolvedError": "errors",
    "Category": "routing",
    "DataResult": "result",
    "Isolation": "sql.transaction",
    "Route": "routing",
    "DataStorage": "storage",
    "Match": "storage",
    "Session": "repositories.sessions",
    "CacheCounts": "engine.tiered",
    "Transaction": "sql.transaction",
    "attempt": "result",
    "HybridClock": "model.clock",
    "VectorClock": "model.clock",
    "Clocked": "model.clocked",
    "AppendLog": "model.merging",
    "GCounter": "model.merging",
    "GSet": "model.merging",
    "LWWRegister": "model.merging",
    "MVRegister": "model.merging",
    "ORMap": "model.merging",
    "ORSet": "model.merging",
    "PNCounter": "model.merging",
    "Document": "model.merging.document",
}

__all__ = ["blocking", "open", *_HOMES]


def open(  # the word users expect; the builtin is not used here
    config: "Config | Path | str | None" = None,
    *,
    kv: str | None = None,
    sql: str | None = None,
    namespace: str | None = None,
    data_dir: "Path | str | None" = None,
    **overrides: Any,
) -> "Opening":
    """Open a store: `async with cenote.open() as store`, or `store = await cenote.open()` and `await store.aclose()`.

    Args:
        config: a `Config`, or the path of a TOML file.
        kv: `nats://host:port[,host:port …]`; without it a private nats-server is started or attached to.
        sql: `postgresql://…`; without it a private PostgreSQL is started or attached to.
        namespace: prefixes buckets and schemas; 1 to 32 letters, digits and `_`.
        data_dir: where private servers keep their data; ":temporary:" vanishes with its last user.
        overrides: any setting as `section__field=value`, e.g. `state__ttl_s=60`.

    Raises:
        SetupError: a setting is wrong, now; later everything that `opening.open_machines` raises.
    """
    from cenote.config import load
    from cenote.store import Opening

    given = {"kv__url": kv, "sql__url": sql, "namespace": namespace, "embedded__data_dir": data_dir}
    overrides |= {name: value for name, value in given.items() if value is not None}
    return Opening(load(config, overrides=overrides))


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name) or _BESIDE.get(name)
    if name in ("blocking", "conflict"):
        return import_module(f"cenote.{name}")
    if home is None:
        raise AttributeError(f"module 'cenote' has no attribute {name!r}")
    return getattr(import_module(f"cenote.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
