-- phase: pre
-- min_reader: 3
-- What agents were: cuts of their state, each a base or what has changed since another one.

-- parent_id: a delta holds what has changed since that one, a base has none. incarnation: of the KV server, for a
-- revision says nothing about what another start of it held. data_id: of its parts, another one once it was made a base.
CREATE TABLE {agents}.checkpoints (
  checkpoint_id uuid        PRIMARY KEY,
  agent_id      uuid        NOT NULL,
  seq           bigint      NOT NULL,
  parent_id     uuid        REFERENCES {agents}.checkpoints (checkpoint_id),
  depth         integer     NOT NULL,
  chain_bytes   bigint      NOT NULL,
  base_bytes    bigint      NOT NULL,
  kv_epoch      bigint      NOT NULL,
  kv_revision   bigint      NOT NULL,
  incarnation   text        NOT NULL,
  cut_at        timestamptz NOT NULL,
  label         text,
  metadata      jsonb,
  raw           bytea,
  keep          boolean     NOT NULL,
  group_id      uuid,
  changed       bigint      NOT NULL,
  removed       bigint      NOT NULL,
  bytes         bigint      NOT NULL,
  data_id       uuid        NOT NULL UNIQUE,
  format        smallint    NOT NULL,
  part_digests  bytea       NOT NULL,
  digest        bytea       NOT NULL,
  created_at    timestamptz NOT NULL DEFAULT now(),
  UNIQUE (agent_id, seq)
);
CREATE INDEX checkpoints_parent ON {agents}.checkpoints (parent_id) WHERE parent_id IS NOT NULL;
COMMENT ON TABLE {agents}.checkpoints IS 'Consistent cuts of the state of agents: bases, and deltas that stand on others';
COMMENT ON COLUMN {agents}.checkpoints.kv_revision IS 'With kv_epoch: the position in the stream at which it was cut';
COMMENT ON COLUMN {agents}.checkpoints.keep IS 'Retention never removes it';
COMMENT ON COLUMN {agents}.checkpoints.part_digests IS 'BLAKE2b of each part, 16 bytes each, in their order';

-- A row may be there before its checkpoint is, and may stay behind when that never comes.
CREATE TABLE {agents}.checkpoint_parts (
  data_id uuid    NOT NULL,
  part    integer NOT NULL,
  data    bytea   NOT NULL,
  PRIMARY KEY (data_id, part)
);
COMMENT ON TABLE {agents}.checkpoint_parts IS 'JSON: [[key, epoch, revision, written_us, expires_ms, codec, body], ...]; a later one of a key counts';

-- Which blobs the parts refer to (flow rule 20).
CREATE TABLE {agents}.checkpoint_blobs (
  blob_id uuid NOT NULL,
  data_id uuid NOT NULL,
  PRIMARY KEY (blob_id, data_id)
);
CREATE INDEX checkpoint_blobs_data ON {agents}.checkpoint_blobs (data_id);

-- Folds base and deltas: the state of each checkpoint. Values are json, not jsonb: nothing is refused, nothing changed.
CREATE VIEW {agents}.checkpoint_state AS
WITH RECURSIVE chain AS (
  SELECT c.checkpoint_id AS of_id, c.data_id, c.parent_id, 0 AS above FROM {agents}.checkpoints AS c
  UNION ALL
  SELECT n.of_id, p.data_id, p.parent_id, n.above + 1
    FROM chain AS n JOIN {agents}.checkpoints AS p ON p.checkpoint_id = n.parent_id
), newest AS (
  SELECT DISTINCT ON (n.of_id, r.record->>0) n.of_id, r.record->>0 AS key, r.record
    FROM chain AS n
    JOIN {agents}.checkpoint_parts AS d ON d.data_id = n.data_id
   CROSS JOIN LATERAL json_array_elements(convert_from(d.data, 'UTF8')::json) WITH ORDINALITY AS r (record, place)
   ORDER BY n.of_id, r.record->>0, n.above, d.part DESC, r.place DESC
)
SELECT c.agent_id, c.checkpoint_id, c.seq, w.key, w.record->>5 AS codec, w.record->6 AS value,
       (w.record->>1)::bigint AS epoch, (w.record->>2)::bigint AS version
  FROM newest AS w
  JOIN {agents}.checkpoints AS c ON c.checkpoint_id = w.of_id
 WHERE w.record->>5 IS NOT NULL
   AND (w.record->>4 IS NULL OR (w.record->>4)::bigint > extract(epoch FROM c.cut_at) * 1000);
COMMENT ON VIEW {agents}.checkpoint_state IS 'The keys of each checkpoint; codec "b": a reference, "=...": base64 of bytes that are no JSON';

-- The specification's name and shape: one object for each checkpoint.
CREATE VIEW {agents}.state_snapshot AS
SELECT s.agent_id, s.checkpoint_id, c.created_at, json_object_agg(s.key, s.value) AS state_snapshot
  FROM {agents}.checkpoint_state AS s
  JOIN {agents}.checkpoints AS c ON c.checkpoint_id = s.checkpoint_id
 GROUP BY s.agent_id, s.checkpoint_id, c.created_at;
