"""Whether the stream and the database belong together, and whether one of them went back in time (I1, I13; flow rules
4, 5, 8)."""

from collections.abc import Iterator

from cenote.cli.examine_kv import KvFacts
from cenote.cli.examine_sql import SqlFacts
from cenote.cli.findings import Finding, failed, ok, skipped, warning
from cenote.engine.belonging import foreign
from cenote.engine.epoch import AWAY_KEY


def compare(kv: KvFacts, sql: SqlFacts) -> Iterator[Finding]:
    """Findings about the store id, the epoch, and what each side remembers of the other."""
    if not kv.known or not sql.known or kv.look is None:
        yield skipped("store", "not compared: it takes both NATS and PostgreSQL")
        return
    newest = sql.epochs[-1] if sql.epochs else None
    stranger = foreign(kv.look, newest, sql.home)
    if stranger is not None:
        yield failed("store", str(stranger.args[0]), _MEND)
    elif kv.look.info is not None and kv.look.info.metadata.get(AWAY_KEY):
        given = kv.look.info.metadata[AWAY_KEY]
        yield failed("store", f"the PostgreSQL of this NATS was given to another NATS, as store {given}", _MEND)
    elif kv.epochs is None or newest is None:
        yield skipped("store", "the stream belongs to no store yet: the first that opens begins one or takes it up")
    elif newest.epoch != kv.epochs.newest:
        found = f"the stream is in epoch {kv.epochs.newest}, PostgreSQL in {newest.epoch}"
        yield warning("store", found, "cenote serve: the next flusher settles it")
    else:
        yield ok("store", f"{newest.store_id}, epoch {newest.epoch}")
        yield _times(kv, sql)


_MEND = "the --kv and --sql that belong together, or a --namespace of its own; to join the two for good: cenote adopt"


def _times(kv: KvFacts, sql: SqlFacts) -> Finding:
    """A server that lost its newest data gives their numbers out again."""
    assert kv.look is not None
    assert kv.look.info is not None
    last, remembered = kv.look.info.last_seq, kv.board.sql_commits if kv.board else 0
    if last < sql.high_water:
        found = f"NATS went back in time: its stream ends at {last}, PostgreSQL has it up to {sql.high_water}"
        return failed("history", found, "cenote serve: the next flusher begins an epoch, and mends what NATS holds")
    if sql.commits < remembered:
        found = f"PostgreSQL went back in time: it ends at commit {sql.commits}, NATS remembers {remembered}"
        return failed("history", found, "cenote serve: the next flusher writes all that NATS holds once more")
    if kv.board is not None and kv.board.sql_commits_lost:
        found = f"PostgreSQL lost {kv.board.sql_commits_lost} commits; what NATS held was written again"
        return warning(
            "history", found, "look in a backup for what NATS had evicted by then; how it goes now: cenote health"
        )
    return ok("history", f"neither went back: sequence {last}, commit {sql.commits}")
