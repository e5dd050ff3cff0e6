-- phase: pre
-- min_reader: 17
-- Agents that began as what a checkpoint of another one holds. Until their values are copied, SQL alone does not say what
-- they hold: whoever does not know of this table would take their keys for absent, hence min_reader.

CREATE TABLE {agents}.forks (
  agent_id      uuid        PRIMARY KEY,
  source_id     uuid        NOT NULL,
  checkpoint_id uuid        NOT NULL REFERENCES {agents}.checkpoints (checkpoint_id),
  created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX forks_checkpoint ON {agents}.forks (checkpoint_id);
COMMENT ON TABLE {agents}.forks IS 'Forks whose values are still to be copied from a checkpoint; a row goes when they have been';
