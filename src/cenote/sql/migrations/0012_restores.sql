-- phase: pre
-- min_reader: 3
-- Restores that took more than one atomic batch and are not finished.

-- kv_epoch, kv_revision: the moment of the restore; what others have written after it stays. What it needs is not
-- removed while it goes on. The row goes when the restore is done.
CREATE TABLE {agents}.restores (
  agent_id      uuid        PRIMARY KEY,
  agent         text        NOT NULL,
  restore_id    uuid        NOT NULL,
  checkpoint_id uuid        NOT NULL REFERENCES {agents}.checkpoints (checkpoint_id),
  before_id     uuid        NOT NULL REFERENCES {agents}.checkpoints (checkpoint_id),
  kv_epoch      bigint      NOT NULL,
  kv_revision   bigint      NOT NULL,
  begun_at      timestamptz NOT NULL DEFAULT now(),
  renewed_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX restores_checkpoint ON {agents}.restores (checkpoint_id);
CREATE INDEX restores_before ON {agents}.restores (before_id);
COMMENT ON TABLE {agents}.restores IS 'Restores in progress: agents whose keys are partly of a checkpoint, partly as before';
COMMENT ON COLUMN {agents}.restores.renewed_at IS 'When somebody last worked on it; one that is left is finished by whoever flushes';
