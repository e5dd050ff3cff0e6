-- agents.checkpoints and their parts. Times travel as microseconds since 1970, as in state.sql.

-- name: checkpoint_rows
-- why: what SQL has newer than KV showed: versions only, for values are read of those that KV lacks. Sizes are at most
-- why: these, by what the compressions can reach, so that a page of values stays bounded.
-- index: state_pkey
SELECT key, epoch, version, deleted, (extract(epoch FROM kv_time) * 1000000)::bigint AS kv_time_us,
       coalesce(octet_length(raw), 0) + coalesce(pg_column_size(value) * CASE pg_column_compression(value)
         WHEN 'pglz' THEN 90 WHEN 'lz4' THEN 255 ELSE 1 END, 0) AS size
  FROM {agents}.state
 WHERE agent_id = $1 AND key > $2 AND (epoch, version) > ($3, $4)
 ORDER BY key
 LIMIT $5

-- name: checkpoint_newest
-- why: upon which the next one may stand.
-- index: checkpoints_agent_id_seq_key
SELECT checkpoint_id, seq, parent_id, depth, chain_bytes, base_bytes, kv_epoch, kv_revision, incarnation, format
  FROM {agents}.checkpoints WHERE agent_id = $1 ORDER BY seq DESC LIMIT 1

-- name: checkpoint_add
-- why: one statement, one commit: the guard says that the epoch is still the one of the cut and, for a delta, that no
-- why: tombstone newer than its parent can have been collected unseen (rule 12). The parent is locked: nobody removes it.
-- index: epochs_pkey, checkpoints_pkey
WITH guard AS MATERIALIZED (
  SELECT 1 FROM {agents}.epochs
   WHERE epoch = $8 AND incarnation IS NOT NULL AND ($4::uuid IS NULL OR (gc_epoch, gc_version) <= ($8, $25::bigint))
), parent AS MATERIALIZED (
  SELECT 1 FROM {agents}.checkpoints WHERE checkpoint_id = $4::uuid FOR KEY SHARE
), added AS (
  INSERT INTO {agents}.checkpoints
         (checkpoint_id, agent_id, seq, parent_id, depth, chain_bytes, base_bytes, kv_epoch, kv_revision, incarnation,
          cut_at, label, metadata, raw, keep, group_id, changed, removed, bytes, data_id, format, part_digests, digest)
  SELECT $1::uuid, $2::uuid, $3::bigint, $4::uuid, $5::integer, $6::bigint, $7::bigint, $8::bigint, $9::bigint,
         $10::text, timestamptz 'epoch' + $11::bigint * interval '1 microsecond', $12::text, $13::jsonb, $14::bytea,
         $15::boolean, $16::uuid, $17::bigint, $18::bigint, $19::bigint, $20::uuid, $21::smallint, $22::bytea, $23::bytea
   WHERE EXISTS (SELECT FROM guard) AND ($4::uuid IS NULL OR EXISTS (SELECT FROM parent))
  ON CONFLICT DO NOTHING
  RETURNING created_at
), told AS (
  INSERT INTO {agents}.lifecycle_events (agent_id, event, details)
  SELECT $2, 'checkpoint', jsonb_build_object('checkpoint', $1::uuid, 'seq', $3::bigint) FROM added
), parts AS (
  INSERT INTO {agents}.checkpoint_parts (data_id, part, data)
  SELECT $20::uuid, $26::integer + p.n - 1, p.data
    FROM added, unnest($24::bytea[]) WITH ORDINALITY AS p (data, n)
), blobs AS (
  INSERT INTO {agents}.checkpoint_blobs (blob_id, data_id)
  SELECT DISTINCT b.id, $20::uuid FROM added, unnest($27::uuid[]) AS b (id)
)
SELECT (SELECT count(*) FROM guard) AS guarded, (SELECT created_at FROM added) AS created_at

-- name: checkpoint_put_parts
-- why: of a large checkpoint, before it is there; made again without harm.
-- index: checkpoint_parts_pkey
INSERT INTO {agents}.checkpoint_parts (data_id, part, data)
SELECT $1, $2::integer + p.n - 1, p.data FROM unnest($3::bytea[]) WITH ORDINALITY AS p (data, n)
    ON CONFLICT (data_id, part) DO UPDATE SET data = excluded.data

-- name: checkpoint_drop_parts
-- why: of a cut that was given up, of a delta that is a base by now.
-- index: checkpoint_parts_pkey, checkpoints_data_id_key, checkpoint_blobs_data
WITH gone AS (
  DELETE FROM {agents}.checkpoint_blobs AS b
   WHERE b.data_id = $1 AND NOT EXISTS (SELECT FROM {agents}.checkpoints WHERE data_id = $1)
)
DELETE FROM {agents}.checkpoint_parts AS p
 WHERE p.data_id = $1 AND NOT EXISTS (SELECT FROM {agents}.checkpoints WHERE data_id = $1)

-- name: checkpoint_rebase
-- why: a delta becomes a base, unless somebody else was faster; its parts are there already.
-- index: checkpoints_pkey
WITH blobs AS (
  INSERT INTO {agents}.checkpoint_blobs (blob_id, data_id) SELECT DISTINCT b.id, $3::uuid FROM unnest($9::uuid[]) AS b (id)
)
UPDATE {agents}.checkpoints
   SET parent_id = NULL, depth = 0, chain_bytes = 0, base_bytes = $4, bytes = $4, data_id = $3, changed = $5,
       removed = 0, format = $6, part_digests = $7, digest = $8
 WHERE checkpoint_id = $1 AND data_id = $2 AND parent_id IS NOT NULL
RETURNING 1

-- name: checkpoint_find
-- why: by its id, of this agent only.
-- index: checkpoints_pkey
SELECT checkpoint_id, agent_id, seq, parent_id, kv_epoch, kv_revision,
       (extract(epoch FROM cut_at) * 1000000)::bigint AS cut_us, label, metadata::text AS metadata, raw, keep, group_id,
       changed, removed, bytes, data_id, format, part_digests, digest, created_at
  FROM {agents}.checkpoints WHERE checkpoint_id = $1 AND agent_id = $2

-- name: checkpoint_list
-- why: pages, the newest first.
-- index: checkpoints_agent_id_seq_key
SELECT checkpoint_id, agent_id, seq, parent_id, kv_epoch, kv_revision,
       (extract(epoch FROM cut_at) * 1000000)::bigint AS cut_us, label, metadata::text AS metadata, raw, keep, group_id,
       changed, removed, bytes, data_id, format, part_digests, digest, created_at
  FROM {agents}.checkpoints
 WHERE agent_id = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3

-- name: checkpoint_chain
-- why: a checkpoint and all that it stands on, the newest first; of which agent they are does not matter (forks).
-- index: checkpoints_agent_id_seq_key, checkpoints_pkey
WITH RECURSIVE chain AS (
  SELECT c.*, 0 AS above FROM {agents}.checkpoints AS c WHERE c.agent_id = $1 AND c.seq = $2
  UNION ALL
  SELECT p.*, n.above + 1 FROM chain AS n JOIN {agents}.checkpoints AS p ON p.checkpoint_id = n.parent_id
)
SELECT checkpoint_id, agent_id, seq, parent_id, kv_epoch, kv_revision,
       (extract(epoch FROM cut_at) * 1000000)::bigint AS cut_us, label, metadata::text AS metadata, raw, keep, group_id,
       changed, removed, bytes, data_id, format, part_digests, digest, created_at
  FROM chain ORDER BY above

-- name: checkpoint_parts
-- why: some parts; of those which cannot hold the key $3 only that they are there.
-- index: checkpoint_parts_pkey
SELECT p.data_id, p.part,
       CASE WHEN $3::bytea IS NULL OR position($3::bytea IN p.data) > 0 THEN p.data END AS data
  FROM unnest($1::uuid[], $2::integer[]) AS w (id, n)
  JOIN {agents}.checkpoint_parts AS p ON p.data_id = w.id AND p.part = w.n

-- name: checkpoint_mentions
-- why: the history of a key: of an agent's own parts those that name it, in the order in which they were made.
-- index: checkpoints_agent_id_seq_key, checkpoint_parts_pkey
SELECT c.checkpoint_id, c.seq, p.part, substring(c.part_digests FROM p.part * 16 + 1 FOR 16) AS digest, p.data
  FROM {agents}.checkpoints AS c
  JOIN {agents}.checkpoint_parts AS p ON p.data_id = c.data_id
 WHERE c.agent_id = $1 AND (c.seq, p.part) > ($3, $4::integer) AND position($2::bytea IN p.data) > 0
 ORDER BY c.seq, p.part
 LIMIT $5

-- name: checkpoint_surplus
-- why: what retention has no reason to keep: not of the last $1, not the last of one of the last $2 hours or $3 days,
-- why: not marked, not needed by a restore that goes on or by a fork. The newest of an agent always stays: the next one stands on it.
-- why: It looks at all of them, now and then.
-- index: none
WITH ranked AS (
  SELECT checkpoint_id, agent_id, keep, cut_at,
         row_number() OVER (PARTITION BY agent_id ORDER BY seq DESC) AS n,
         row_number() OVER (PARTITION BY agent_id, date_trunc('hour', cut_at, 'UTC') ORDER BY seq DESC) AS of_hour,
         row_number() OVER (PARTITION BY agent_id, date_trunc('day', cut_at, 'UTC') ORDER BY seq DESC) AS of_day
    FROM {agents}.checkpoints
)
SELECT agent_id, array_agg(checkpoint_id) AS ids
  FROM (
    SELECT * FROM ranked AS r
     WHERE n > greatest($1::bigint, 1) AND NOT keep
       AND NOT (of_hour = 1 AND cut_at > now() - $2::bigint * interval '1 hour')
       AND NOT (of_day = 1 AND cut_at > now() - $3::bigint * interval '1 day')
       AND NOT EXISTS (SELECT FROM {agents}.restores AS w
                        WHERE w.checkpoint_id = r.checkpoint_id OR w.before_id = r.checkpoint_id)
       AND NOT EXISTS (SELECT FROM {agents}.forks AS f WHERE f.checkpoint_id = r.checkpoint_id)
     LIMIT $4
  ) AS surplus
 GROUP BY agent_id

-- name: checkpoint_standing_on
-- why: survivors that stand on what is to go: they are made bases first.
-- index: checkpoints_parent
SELECT checkpoint_id, agent_id, seq, parent_id, kv_epoch, kv_revision,
       (extract(epoch FROM cut_at) * 1000000)::bigint AS cut_us, label, metadata::text AS metadata, raw, keep, group_id,
       changed, removed, bytes, data_id, format, part_digests, digest, created_at
  FROM {agents}.checkpoints
 WHERE parent_id = ANY($1::uuid[]) AND NOT checkpoint_id = ANY($1::uuid[])

-- name: checkpoint_remove
-- why: but for what somebody stands on by now, or restores; the foreign keys say so, too.
-- index: checkpoints_pkey, checkpoints_parent, restores_checkpoint, forks_checkpoint, checkpoint_parts_pkey, checkpoint_blobs_data
WITH gone AS (
  DELETE FROM {agents}.checkpoints AS c
   WHERE c.agent_id = $1 AND c.checkpoint_id = ANY($2::uuid[])
     AND NOT EXISTS (SELECT FROM {agents}.checkpoints AS d
                      WHERE d.parent_id = c.checkpoint_id AND NOT d.checkpoint_id = ANY($2::uuid[]))
     AND NOT EXISTS (SELECT FROM {agents}.restores AS w
                      WHERE w.checkpoint_id = c.checkpoint_id OR w.before_id = c.checkpoint_id)
     AND NOT EXISTS (SELECT FROM {agents}.forks AS f WHERE f.checkpoint_id = c.checkpoint_id)
  RETURNING data_id
), blobs AS (
  DELETE FROM {agents}.checkpoint_blobs WHERE data_id IN (SELECT data_id FROM gone)
), parts AS (
  DELETE FROM {agents}.checkpoint_parts WHERE data_id IN (SELECT data_id FROM gone)
)
SELECT count(*) FROM gone

-- name: checkpoint_orphans
-- why: parts whose checkpoint never came: their id is a UUIDv7 (RFC 9562), so it says when they were begun.
-- index: checkpoint_parts_pkey, checkpoints_data_id_key
SELECT DISTINCT p.data_id
  FROM {agents}.checkpoint_parts AS p
 WHERE p.data_id < $1::uuid AND NOT EXISTS (SELECT FROM {agents}.checkpoints AS c WHERE c.data_id = p.data_id)
 LIMIT 1000
