-- phase: pre
-- min_reader: 1
-- The log of commits, from which the change feed reads. One row per flush, not per key: 30 bytes a key at most.

-- A commit takes its number from the one row here, which it keeps locked until it is over: so numbers are given in the
-- order of the commits, without gaps, and a number that can be read has no unfinished one below it (flow rule 25).
CREATE TABLE {agents}.flush_head (
  one          boolean     PRIMARY KEY CHECK (one),
  number       bigint      NOT NULL,
  committed_at timestamptz NOT NULL
) WITH (fillfactor = 20);
COMMENT ON TABLE {agents}.flush_head IS 'How many flushes have changed a row; it goes back only when the database does';

CREATE TABLE {agents}.flush_log (
  number       bigint      PRIMARY KEY,
  committed_at timestamptz NOT NULL,
  agent_ids    uuid[]      NOT NULL,
  keys         text[]      COLLATE "C" NOT NULL
);
COMMENT ON TABLE {agents}.flush_log IS 'Which rows each flush changed, in commit order; old ones are removed';
COMMENT ON COLUMN {agents}.flush_log.committed_at IS 'With the number, names the commit: a database that went back gives the number again, at another time';
