-- phase: pre
-- min_reader: 3
-- What has changed since whoever flushes made a checkpoint last: only where the settings ask for checkpoints.

-- writes: rows that flushes have changed since; since: the commit of the first of them; not_before: somebody is at it, or
-- has failed lately.
CREATE TABLE {agents}.checkpoint_due (
  agent_id   uuid        PRIMARY KEY,
  writes     bigint      NOT NULL,
  since      timestamptz NOT NULL,
  not_before timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);
COMMENT ON TABLE {agents}.checkpoint_due IS 'Agents that have changed since the last checkpoint that the settings asked for';

CREATE TABLE {agents}.checkpoint_due_head (
  one    boolean PRIMARY KEY CHECK (one),
  number bigint  NOT NULL
);
COMMENT ON TABLE {agents}.checkpoint_due_head IS 'The commit of the flush log up to which changes are counted';
