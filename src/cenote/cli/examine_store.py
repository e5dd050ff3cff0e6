"""Whether the stream and the database belong together (I13; flow rule 8)."""

from collections.abc import Iterator
from uuid import UUID

from cenote.cli.examine_kv import KvFacts
from cenote.cli.examine_sql import SqlFacts
from cenote.cli.findings import Finding, failed, ok, skipped, warning


def compare(kv: KvFacts, sql: SqlFacts) -> Iterator[Finding]:
    """One finding about the store id and the epoch."""
    if not kv.known or not sql.known:
        yield skipped("store", "not compared: it takes both NATS and PostgreSQL")
    elif kv.epochs is None:
        yield skipped("store", "the stream belongs to no store yet: the first that opens begins one")
    elif not sql.epochs:
        yield failed("store", "the stream belongs to a store that this PostgreSQL does not know", _MEND)
    else:
        yield _paired(kv, sql)


_MEND = "the --sql of that store, or a --namespace of its own"


def _paired(kv: KvFacts, sql: SqlFacts) -> Finding:
    assert kv.epochs is not None
    newest = sql.epochs[-1]
    if UUID(newest.store_id) != UUID(kv.epochs.store_id):
        found = f"the stream is of store {kv.epochs.store_id}, PostgreSQL of {newest.store_id}"
        return failed("store", found, _MEND)
    if newest.epoch != kv.epochs.newest:
        found = f"the stream is in epoch {kv.epochs.newest}, PostgreSQL in {newest.epoch}"
        return warning("store", found, "cenote serve: the next flusher settles it")
    return ok("store", f"{newest.store_id}, epoch {newest.epoch}")
