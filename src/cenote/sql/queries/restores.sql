-- agents.restores.

-- name: restore_add
-- why: before the first of several batches; nothing when another restore of one of these agents is not finished.
-- index: restores_pkey
INSERT INTO {agents}.restores (agent_id, agent, restore_id, checkpoint_id, before_id, kv_epoch, kv_revision)
SELECT a, n, $3::uuid, c, b, $6, $7
  FROM unnest($1::uuid[], $2::text[], $4::uuid[], $5::uuid[]) AS u (a, n, c, b)
 WHERE NOT EXISTS (SELECT FROM {agents}.restores AS r WHERE r.agent_id = ANY ($1::uuid[]))
RETURNING 1

-- name: restore_find
-- why: what is not finished of these agents.
-- index: restores_pkey
SELECT agent_id, agent, restore_id, checkpoint_id, before_id, kv_epoch, kv_revision, begun_at, renewed_at
  FROM {agents}.restores
 WHERE restore_id IN (SELECT r.restore_id FROM {agents}.restores AS r WHERE r.agent_id = ANY ($1::uuid[]))
 ORDER BY restore_id, agent_id

-- name: restore_left
-- why: agents whose restore nobody has worked on for $1 seconds; the table is empty nearly always.
-- index: none
SELECT agent_id FROM {agents}.restores
 WHERE renewed_at < clock_timestamp() - $1::double precision * interval '1 second'
 ORDER BY begun_at LIMIT 100

-- name: restore_renew
-- why: before each batch: somebody works on it; none once it is done.
-- index: none
UPDATE {agents}.restores SET renewed_at = clock_timestamp() WHERE restore_id = $1 RETURNING 1

-- name: restore_done
-- why: all of its batches are acknowledged.
-- index: none
DELETE FROM {agents}.restores WHERE restore_id = $1

-- name: restore_floor
-- why: whether tombstones above the moment ($1, $2) may have been collected: then an absent key may have been deleted
-- why: since (rule 12).
-- index: epochs_open
SELECT coalesce(bool_or((gc_epoch, gc_version) > ($1, $2)), true) FROM {agents}.epochs WHERE incarnation IS NOT NULL

-- name: restore_blob
-- why: a blob belongs to one write (rule 20): what is written anew gets one of its own.
-- index: blobs_pkey
INSERT INTO {agents}.blobs (id, bytes, agent_id, key)
SELECT $1, b.bytes, $3, $4 FROM {agents}.blobs AS b WHERE b.id = $2
RETURNING 1
