-- What leaves SQL again: tombstones, expired rows, blobs, heartbeats of flushers long gone (flow rules 12, 20, 21).

-- name: expired
-- why: rows whose time is over by the KV server's clock $1; one with an open dead letter waits for the operator.
-- index: state_expiring
SELECT s.agent_id, s.key, s.epoch, s.version
  FROM {agents}.state AS s
 WHERE s.expires_at IS NOT NULL AND NOT s.deleted
   AND s.expires_at <= timestamptz 'epoch' + $1::bigint * interval '1 microsecond'
   AND NOT EXISTS (SELECT FROM {agents}.dead_letters AS l
                    WHERE l.resolved_at IS NULL AND l.agent_id = s.agent_id AND l.key = s.key)
 ORDER BY s.expires_at
 LIMIT $2

-- name: expire
-- why: an expired row becomes a tombstone of its version, unless it has been written since it was seen (rule 21). It
-- why: waits for nobody's row, so that no flush can meet it in a deadlock.
-- index: state_pkey
WITH held AS MATERIALIZED (
  SELECT s.agent_id, s.key
    FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[]) AS u (a, k, e, r)
    JOIN {agents}.state AS s ON s.agent_id = u.a AND s.key = u.k
   WHERE (s.epoch, s.version) = (u.e, u.r) AND NOT s.deleted
     FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE {agents}.state AS s SET deleted = true, value = NULL, raw = NULL, updated_at = now()
  FROM held AS h
 WHERE s.agent_id = h.agent_id AND s.key = h.key

-- name: tombstones
-- why: a page of all tombstones in key order; ripe are those that SQL has had for $1 seconds, that the flusher is past
-- why: ($2, $3), of whose version no dead letter is open, and whose agent is no fork that is still to be copied: there it
-- why: keeps the copy away.
-- index: state_tombstones, forks_pkey
SELECT r.name, s.agent_id, s.key, s.epoch, s.version,
       s.updated_at < clock_timestamp() - $1::double precision * interval '1 second'
       AND (s.epoch, s.version) <= ($2::bigint, $3::bigint)
       AND NOT EXISTS (SELECT FROM {agents}.dead_letters AS l
                        WHERE l.resolved_at IS NULL AND l.agent_id = s.agent_id AND l.key = s.key
                          AND (l.epoch, l.version) = (s.epoch, s.version))
       AND NOT EXISTS (SELECT FROM {agents}.forks AS f WHERE f.agent_id = s.agent_id) AS ripe
  FROM {agents}.state AS s
  LEFT JOIN {agents}.registry AS r ON r.agent_id = s.agent_id
 WHERE s.deleted AND (s.agent_id, s.key) > ($4, $5::text COLLATE "C")
 ORDER BY s.agent_id, s.key
 LIMIT $6

-- name: collect
-- why: the floor is raised on the row that each flush locks FOR SHARE, before the first tombstone goes: a flush that came
-- why: first is waited for, one that waits reads the new floor (rule 12). A row that such a flush has written since is
-- why: another version when DELETE looks at it again (EvalPlanQual), and stays.
-- index: epochs_pkey, state_pkey
WITH raised AS MATERIALIZED (
  UPDATE {agents}.epochs
     SET gc_epoch = CASE WHEN (gc_epoch, gc_version) < ($3, $4) THEN $3 ELSE gc_epoch END,
         gc_version = CASE WHEN (gc_epoch, gc_version) < ($3, $4) THEN $4 ELSE gc_version END,
         gc_round = gc_round + 1
   WHERE epoch = $1 AND incarnation = $2
  RETURNING 1
), gone AS (
  DELETE FROM {agents}.state AS s
   USING unnest($5::uuid[], $6::text[], $7::bigint[], $8::bigint[]) AS u (a, k, e, r)
   WHERE EXISTS (SELECT FROM raised)
     AND s.agent_id = u.a AND s.key = u.k AND (s.epoch, s.version) = (u.e, u.r) AND s.deleted
  RETURNING 1
)
SELECT (SELECT count(*) FROM gone) AS gone FROM raised

-- name: blobs
-- why: a page of blobs with what SQL says of each: whether its key's row, an open dead letter of its key or a checkpoint
-- why: refers to it, what version SQL has of the key, whether it was found unreferenced before, and $1 seconds ago.
-- index: blobs_pkey, state_pkey, checkpoint_blobs_pkey
SELECT b.id, r.name, b.agent_id, b.key,
       coalesce(position(convert_to(b.id::text, 'UTF8') IN substring(s.raw FROM 1 FOR 400)) > 0, false)
       OR EXISTS (SELECT FROM {agents}.dead_letters AS l
                   WHERE l.resolved_at IS NULL AND l.agent_id = b.agent_id AND l.key = b.key
                     AND position(convert_to(b.id::text, 'UTF8') IN substring(l.raw FROM 1 FOR 400)) > 0)
       OR EXISTS (SELECT FROM {agents}.checkpoint_blobs AS c WHERE c.blob_id = b.id) AS referred,
       s.epoch, s.version, b.unreferenced_at IS NOT NULL AS marked,
       coalesce(b.unreferenced_at < clock_timestamp() - $1::double precision * interval '1 second', false) AS ripe
  FROM {agents}.blobs AS b
  LEFT JOIN {agents}.state AS s ON s.agent_id = b.agent_id AND s.key = b.key
  LEFT JOIN {agents}.registry AS r ON r.agent_id = b.agent_id
 WHERE b.agent_id IS NOT NULL AND b.id > $2
 ORDER BY b.id
 LIMIT $3

-- name: mark_blobs
-- why: unreferenced from now on, or referred to again.
-- index: blobs_pkey
UPDATE {agents}.blobs SET unreferenced_at = CASE WHEN $2::boolean THEN clock_timestamp() END WHERE id = ANY ($1::uuid[])

-- name: begin_collection
-- why: waits for the flushes that run and holds back the others until the transaction ends (rule 12).
-- index: epochs_pkey
UPDATE {agents}.epochs SET gc_round = gc_round + 1 WHERE epoch = $1 AND incarnation = $2

-- name: collect_blobs
-- why: in the transaction of begin_collection: a statement of its own, for what the flush before it committed must be in
-- why: its snapshot.
-- index: blobs_pkey, state_pkey, checkpoint_blobs_pkey
DELETE FROM {agents}.blobs AS b
 WHERE b.id = ANY ($1::uuid[])
   AND b.unreferenced_at < clock_timestamp() - $2::double precision * interval '1 second'
   AND NOT EXISTS (SELECT FROM {agents}.state AS s
                    WHERE s.agent_id = b.agent_id AND s.key = b.key
                      AND position(convert_to(b.id::text, 'UTF8') IN substring(s.raw FROM 1 FOR 400)) > 0)
   AND NOT EXISTS (SELECT FROM {agents}.checkpoint_blobs AS c WHERE c.blob_id = b.id)

-- name: forget_flushers
-- why: heartbeats of processes long gone. In each epoch a row stays that no other exceeds in sequence and in time, for a
-- why: rewind is measured by it (rule 4).
-- index: none
DELETE FROM {agents}.flushers AS f
 WHERE f.committed_at < clock_timestamp() - $1::double precision * interval '1 second'
   AND EXISTS (SELECT FROM {agents}.flushers AS o
                WHERE o.epoch = f.epoch AND o.high_water >= f.high_water AND o.kv_time >= f.kv_time
                  AND (o.high_water, o.kv_time, o.flusher_id) > (f.high_water, f.kv_time, f.flusher_id))

-- name: insert_blob
-- why: committed before the entry that refers to it is published (rule 20).
-- index: blobs_pkey
INSERT INTO {agents}.blobs (id, bytes, agent_id, key) VALUES ($1, $2, $3, $4)

-- name: read_blob
-- why: the bytes behind a reference.
-- index: blobs_pkey
SELECT bytes FROM {agents}.blobs WHERE id = $1

-- name: drop_blob
-- why: one that was written for an entry which was then surely not published.
-- index: blobs_pkey
DELETE FROM {agents}.blobs WHERE id = $1
