-- agents.forks: agents whose values are still those of a checkpoint of another agent.

-- name: fork_add
-- why: one row, whatever the agent holds. Nothing where the new agent has ever been seen in SQL, or has begun as a fork;
-- why: the foreign key holds the checkpoint.
-- index: checkpoints_pkey, state_pkey, checkpoints_agent_id_seq_key, forks_pkey
WITH added AS (
  INSERT INTO {agents}.forks (agent_id, source_id, checkpoint_id)
  SELECT $1::uuid, c.agent_id, c.checkpoint_id
    FROM {agents}.checkpoints AS c
   WHERE c.checkpoint_id = $3 AND c.agent_id = $2
     AND NOT EXISTS (SELECT FROM {agents}.state WHERE agent_id = $1)
     AND NOT EXISTS (SELECT FROM {agents}.checkpoints WHERE agent_id = $1)
      ON CONFLICT DO NOTHING
  RETURNING 1
)
INSERT INTO {agents}.lifecycle_events (agent_id, event, details)
SELECT $1, 'fork', jsonb_build_object('of', $2::uuid, 'checkpoint', $3::uuid) FROM added
RETURNING 1

-- name: forks
-- why: what is still to be copied: of one agent, or of all.
-- index: forks_pkey, checkpoints_pkey
SELECT f.agent_id, f.source_id, f.checkpoint_id, c.seq, c.kv_revision,
       (extract(epoch FROM c.cut_at) * 1000000)::bigint AS cut_us
  FROM {agents}.forks AS f
  JOIN {agents}.checkpoints AS c ON c.checkpoint_id = f.checkpoint_id
 WHERE $1::uuid IS NULL OR f.agent_id = $1

-- name: fork_copy
-- why: some rows, where nobody has written the key meanwhile, tombstones included. FOR SHARE: who comes late, when another
-- why: process has copied everything and tombstones may have been collected since, finds no mark and copies nothing
-- why: (rule 12). Their epoch is 0: whatever is written is newer, and no change of epoch takes them for flushed entries.
-- why: It is a commit of its own in the change feed, numbered last, like a flush.
-- index: forks_pkey, state_pkey, flush_head_pkey, flush_log_pkey
WITH mark AS MATERIALIZED (
  SELECT FROM {agents}.forks WHERE agent_id = $1 AND checkpoint_id = $2 FOR SHARE
), copied AS (
  INSERT INTO {agents}.state
         (agent_id, key, value, raw, version, epoch, kv_time, deleted, quarantined, expires_at, updated_at)
  SELECT $1, u.k, u.v::jsonb, u.b, $8::bigint, 0, timestamptz 'epoch' + $9::bigint * interval '1 microsecond', false, u.q,
         timestamptz 'epoch' + u.x * interval '1 microsecond', now()
    FROM mark, unnest($3::text[], $4::text[], $5::bytea[], $6::boolean[], $7::bigint[]) AS u (k, v, b, q, x)
      ON CONFLICT (agent_id, key) DO NOTHING
  RETURNING agent_id, key
), head AS (
  INSERT INTO {agents}.flush_head AS h (one, number, committed_at)
  SELECT true, 1, clock_timestamp() WHERE EXISTS (SELECT FROM copied)
  ON CONFLICT (one) DO UPDATE SET number = h.number + 1, committed_at = clock_timestamp()
  RETURNING number, committed_at
), logged AS (
  INSERT INTO {agents}.flush_log (number, committed_at, agent_ids, keys)
  SELECT number, committed_at, agent_ids, keys
    FROM head, (SELECT array_agg(agent_id) AS agent_ids, array_agg(key) AS keys FROM copied) AS a
)
SELECT count(*) FROM mark

-- name: fork_done
-- why: all of it is there.
-- index: forks_pkey
DELETE FROM {agents}.forks WHERE agent_id = $1 AND checkpoint_id = $2
