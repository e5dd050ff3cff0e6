-- phase: pre
-- min_reader: 3
-- What is to be done. Indexes cover live rows only: what is finished stays until its retention is over, and costs those
-- who look for work nothing. Pages are left half empty, so that the version that a claim writes stays on its page: that
-- is a quarter less write-ahead log.

COMMENT ON SCHEMA {tasks} IS 'What is to be done, by whom it is being done, and what became of it';

CREATE TABLE {tasks}.queue (
  task_id      uuid        NOT NULL,
  created_at   timestamptz NOT NULL,
  run_at       timestamptz NOT NULL,
  expires_at   timestamptz,
  lease_until  timestamptz,
  finished_at  timestamptz,
  token        uuid,
  attempts     integer     NOT NULL DEFAULT 0,
  attempts_max integer     NOT NULL,
  priority     smallint    NOT NULL,
  status       text        COLLATE "C" NOT NULL DEFAULT 'pending'
    CHECK (status IN ('pending', 'running', 'retry', 'done', 'failed', 'cancelled', 'expired')),
  task_type    text        COLLATE "C" NOT NULL,
  worker       text,
  dedupe_key   text        COLLATE "C",
  last_error   text,
  payload      jsonb,
  raw          bytea,
  metadata     jsonb,
  metadata_raw bytea,
  result       jsonb,
  result_raw   bytea,
  CONSTRAINT queue_pkey PRIMARY KEY (task_id),
  CONSTRAINT queue_leased CHECK ((status = 'running') = (lease_until IS NOT NULL))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.2);
CREATE INDEX queue_ready ON {tasks}.queue (task_type, priority DESC, run_at, task_id)
  WHERE status IN ('pending', 'retry');
CREATE INDEX queue_running ON {tasks}.queue (task_type, lease_until) WHERE status = 'running';
CREATE INDEX queue_expiring ON {tasks}.queue (expires_at)
  WHERE status IN ('pending', 'retry') AND expires_at IS NOT NULL;
CREATE UNIQUE INDEX queue_dedupe ON {tasks}.queue (task_type, dedupe_key)
  WHERE dedupe_key IS NOT NULL AND status IN ('pending', 'retry', 'running');
CREATE INDEX queue_finished ON {tasks}.queue (finished_at) WHERE finished_at IS NOT NULL;
COMMENT ON TABLE {tasks}.queue IS 'Tasks, the finished ones until their retention is over';
COMMENT ON COLUMN {tasks}.queue.token IS 'Fencing: of the last claim; whoever finishes a task must show it';
COMMENT ON COLUMN {tasks}.queue.lease_until IS 'A running task may be taken by another worker after this';
COMMENT ON COLUMN {tasks}.queue.raw IS 'The exact bytes of the payload, only where jsonb would refuse or change it';
