-- Checkpoints that leave for a file, and that come from one.

-- name: export_checkpoints
-- why: all that a row says but where its parts are, the oldest first, for those stand on nothing later.
-- index: checkpoints_agent_id_seq_key
SELECT checkpoint_id, agent_id, seq, parent_id, depth, chain_bytes, base_bytes, kv_epoch, kv_revision, incarnation,
       (extract(epoch FROM cut_at) * 1000000)::bigint AS cut_us, label, metadata::text AS metadata, raw, keep, group_id,
       changed, removed, bytes, data_id, format, part_digests, digest
  FROM {agents}.checkpoints
 WHERE agent_id = $1 AND seq > $2 AND seq <= $3 ORDER BY seq LIMIT 1

-- name: import_checkpoint
-- why: as it was, under parts of its own; not where the agent or the id is taken.
-- index: checkpoints_pkey
WITH blobs AS (
  INSERT INTO {agents}.checkpoint_blobs (blob_id, data_id)
  SELECT DISTINCT b.id, $20::uuid FROM unnest($24::uuid[]) AS b (id)
)
INSERT INTO {agents}.checkpoints
       (checkpoint_id, agent_id, seq, parent_id, depth, chain_bytes, base_bytes, kv_epoch, kv_revision, incarnation,
        cut_at, label, metadata, raw, keep, group_id, changed, removed, bytes, data_id, format, part_digests, digest)
SELECT $1::uuid, $2::uuid, $3::bigint, $4::uuid, $5::integer, $6::bigint, $7::bigint, $8::bigint, $9::bigint,
       $10::text, timestamptz 'epoch' + $11::bigint * interval '1 microsecond', $12::text, $13::jsonb, $14::bytea,
       $15::boolean, $16::uuid, $17::bigint, $18::bigint, $19::bigint, $20::uuid, $21::smallint, $22::bytea, $23::bytea
    ON CONFLICT DO NOTHING
RETURNING 1

-- name: import_blob
-- why: a large value of a checkpoint, under the id by which its parts know it.
-- index: blobs_pkey
INSERT INTO {agents}.blobs (id, bytes, agent_id, key) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING

-- name: has_checkpoints
-- why: an import is for an agent without a past.
-- index: checkpoints_agent_id_seq_key
SELECT EXISTS (SELECT FROM {agents}.checkpoints WHERE agent_id = $1)
