"""The scenarios of the flow: small, and each about one thing."""

from programs import Process
from world import Scope

_NAMES = "ABCDEFGH"


def client(*verbs: tuple[object, ...], name: str = "client") -> Process:
    """A user who does one thing after the other."""
    return Process(name, tuple(verbs))


FLUSHER = Process("flusher", (("flusher",),), loops=True)
SECOND = Process("flusher'", (("flusher",),), loops=True)
COLLECTOR = Process("collector", (("collector",),), loops=True)
MENDER = Process("mender", (("mender",),), loops=True)
RIVAL = Process("mender'", (("mender",),), loops=True)
ONE = Process("evictor", (("evictor",),))


def put(k: int, val: int) -> tuple[object, ...]:
    return ("put", k, val)


A, B, C = "writer A", "writer B", "reader"
SCOPES: dict[str, Scope] = {
    "flush": Scope("two writers, two flushers, crashes", ("k",), (
        client(put(0, 11), put(0, 12), name=A), client(("delete", 0, 21), name=B), FLUSHER, SECOND), {"crash": 1},
        must=("commits", "fenced off", "is killed", " again"), usual=True),
    "durable": Scope("a receipt is waited for while others overwrite", ("n", "o"), (
        client(("put_durable", 0, 11), name=A), client(put(1, 21), put(0, 22), name=B), FLUSHER, SECOND), {"crash": 1},
        must=("is told yes",)),
    "flush()": Scope("flush() while others overwrite", ("n", "o"), (
        client(put(0, 11), ("flush",), name=A), client(put(1, 21), put(0, 22), name=B), FLUSHER, SECOND), {"crash": 1},
        must=("flush() is done",)),
    "retry": Scope("a lost answer", ("k",), (
        client(put(0, 11), name=A), client(("update", 0, 21), name=B), FLUSHER), {"lost": 1, "stuck": 1},
        must=("its own write is there", "outcome is unknown", "stuck on its way", "by compare-and-set"), usual=True),
    "poison": Scope("SQL refuses a value", ("k",), (
        client(put(0, 11), put(0, 90), name=A), client(("get", 0), name=C), FLUSHER, ONE), {"tick": 1},
        must=("PURGE", "from SQL")),
    "hydrate": Scope("a key that only SQL has: hydration beside write, flush and eviction", ("k",), (
        client(("get", 0), name=C), client(put(0, 21), name=B), client(("get", 0), name="late"), FLUSHER, ONE),
        {"tick": 1}, flushed=True, must=("hydrates", "PURGE", "is refused", "not to be believed")),
    "update": Scope("two updates of a key that only SQL has", ("k",), (
        client(("update", 0, 11), name=A), client(("update", 0, 21), name=B), FLUSHER, ONE), {"tick": 1}, flushed=True,
        must=("hydrates", "PURGE", "by compare-and-set", "is refused")),
    "create": Scope("put(if_version=0), a fresh key", ("k",), (
        client(("update", 0, 11, "absent"), name=A), client(("update", 0, 21, "absent"), name=B), FLUSHER, ONE),
        {"tick": 1}, must=("by compare-and-set", "PURGE"), usual=True),
    "create-sql": Scope("put(if_version=0), a key that only SQL has", ("k",), (
        client(("update", 0, 11, "absent"), name=A), client(("delete", 0, 21), name=B), FLUSHER), {}, flushed=True,
        must=("by compare-and-set",), usual=True),
    "delete": Scope("delete, eviction, collection of tombstones", ("k",), (
        client(put(0, 11), ("delete", 0, 12), name=A), client(("get", 0), name=C), FLUSHER, SECOND, ONE, COLLECTOR),
        {"tick": 1}, must=("removes the tombstone", "PURGE", "collection floor")),
    "collect": Scope("the collection floor beside a backlog", ("k", "m"), (
        client(put(0, 11), put(0, 12), name=A), client(("delete", 1, 21), name=B), FLUSHER, SECOND, COLLECTOR),
        {"tick": 1}, must=("collection floor", "is live at the leader")),
    "evict": Scope("eviction beside a backlog", ("k", "m"), (
        client(put(0, 11), put(0, 12), name=A), client(put(1, 21), name=B), FLUSHER, ONE),
        {"tick": 1, "stuck": 1}, must=("PURGE",)),
    "power": Scope("a lost tail, one key", ("k",), (
        client(put(0, 11), put(0, 12), name=A), client(put(0, 21), name=B), FLUSHER, SECOND, MENDER),
        {"power": 1, "sync": 1}, must=("POWER LOSS", "begins epoch", "replaces", "no address", "drops")),
    "power-2": Scope("a lost tail, two keys", ("k", "j"), (
        client(put(0, 11), put(1, 12), put(0, 13), name=A), FLUSHER, MENDER, RIVAL), {"power": 1, "sync": 1},
        must=("POWER LOSS", "begins epoch", "loses the race")),
    "power-evict": Scope("a lost tail beside eviction", ("k",), (
        client(put(0, 11), put(0, 12), put(0, 13), name=A), FLUSHER, MENDER, ONE),
        {"power": 1, "sync": 1, "tick": 1}, must=("POWER LOSS", "PURGE", "purges nothing")),
    "power-update": Scope("a frozen update() across a lost tail", ("k",), (
        client(("update", 0, 11), name=A), client(put(0, 21), put(0, 22), name=B), FLUSHER, MENDER),
        {"power": 1, "sync": 1}, must=("POWER LOSS", "is not what it was")),
    "power-stuck": Scope("a compare-and-set that is stuck over a lost tail", ("k",), (
        client(("update", 0, 11), name=A), client(put(0, 21), put(0, 22), name=B), FLUSHER, MENDER),
        {"power": 1, "stuck": 1}, must=("POWER LOSS", "stuck on its way", "outcome is unknown")),
    "power-hidden": Scope("a lost tail that last_seq has overtaken", ("k", "j"), (
        client(put(0, 11), put(0, 12), name=A), client(put(1, 21), put(1, 22), name=B), FLUSHER, MENDER),
        {"power": 1, "sync": 1}, must=("POWER LOSS", "is older than SQL", "begins epoch")),
    "power-durable": Scope("a receipt across a lost tail", ("k",), (
        client(put(0, 11), ("put_durable", 0, 12), name=A), client(put(0, 21), name=B), FLUSHER, MENDER),
        {"power": 1, "sync": 1}, must=("POWER LOSS", "raises OutcomeUnknownError"), reads=False, waits=False),
    "power-flush()": Scope("flush() across a lost tail", ("k", "j"), (
        client(put(0, 11), ("flush",), name=A), client(put(1, 21), name=B), FLUSHER, MENDER),
        {"power": 1, "sync": 1}, must=("POWER LOSS", "raises OutcomeUnknownError"), reads=False),
    "power-held": Scope("if_version across a lost tail", ("k",), (
        client(("put_if_held", 0, 11), name=A), client(put(0, 21), put(0, 22), name=B), FLUSHER, MENDER),
        {"power": 1, "sync": 1}, must=("POWER LOSS", "ConflictError", "still at version"),
        needs=frozenset({"F-start"})),
    "power-get": Scope("a hydration across a lost tail", ("k",), (
        client(("get", 0), name=C), client(put(0, 21), put(0, 22), name=B), FLUSHER, MENDER), {"power": 1, "sync": 1},
        flushed=True, must=("POWER LOSS", "new connection, hydrates")),
    "power-twice": Scope("two power losses", ("k",), (
        client(put(0, 11), put(0, 12), name=A), FLUSHER, MENDER), {"power": 2, "sync": 1}, must=("POWER LOSS",)),
    "power-collect": Scope("a lost tail and the collection of tombstones", ("k",), (
        client(put(0, 11), ("delete", 0, 12), name=A), FLUSHER, MENDER, COLLECTOR), {"power": 1, "sync": 1, "tick": 1},
        must=("POWER LOSS", "removes the tombstone")),
    "embedded": Scope("a lost tail, our own server", ("k",), (
        client(put(0, 11), put(0, 12), name=A), client(("update", 0, 21), name=B), FLUSHER, SECOND, MENDER),
        {"power": 1, "sync": 1}, embedded=True, must=("POWER LOSS", "no address")),
    "embedded-evict": Scope("the same beside eviction", ("k",), (
        client(put(0, 11), put(0, 12), name=A), client(("get", 0), name=C), FLUSHER, MENDER, ONE),
        {"power": 1, "sync": 1, "tick": 1}, embedded=True, must=("POWER LOSS", "PURGE", "hydrates")),
    "failover": Scope("SQL loses commits", ("k",), (
        client(put(0, 11), put(0, 12), name=A), FLUSHER, SECOND, MENDER), {"failover": 1, "sync": 1},
        must=("fails over", "new durable"), usual=True),
    "failover-evict": Scope("SQL loses commits beside eviction", ("k", "j"), (
        client(put(0, 11), name=A), client(put(1, 21), name=B), FLUSHER, MENDER, ONE),
        {"failover": 1, "sync": 1, "tick": 1}, must=("fails over", "PURGE", "SQL is another one")),
    "failover-durable": Scope("receipts across a failover", ("k",), (
        client(put(0, 11), ("put_durable", 0, 12), name=A), FLUSHER, SECOND, MENDER), {"failover": 1, "sync": 1},
        must=("fails over", "is told yes")),
    "restore": Scope("an old backup of SQL, and copies in KV", ("k",), (
        client(("get", 0), name=C), client(("update", 0, 11), name=A), FLUSHER, MENDER), {"restore": 1}, flushed=True,
        must=("backup", "hydrates", "skips the clean"), waits=False, reads=False),
    "both": Scope("SQL loses commits and KV its tail", ("k",), (
        client(put(0, 11), put(0, 12), name=A), FLUSHER, MENDER), {"failover": 1, "power": 1, "sync": 2},
        must=("fails over", "POWER LOSS")),
}  # fmt: skip
