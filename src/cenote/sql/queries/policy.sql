-- agents.checkpoint_due: what has changed since the last checkpoint that the settings asked for.

-- name: due_begin
-- why: counting begins with the oldest flush that is kept: what changed before the settings first asked counts, too.
-- index: checkpoint_due_head_pkey
INSERT INTO {agents}.checkpoint_due_head (one, number) VALUES (true, 0) ON CONFLICT DO NOTHING

-- name: due_count
-- why: the next $1 commits are counted, by agent but for the reserved ones $2, each once whoever counts: the head's row
-- why: is locked until they are. A database that went back has a head that went back with it. Commits that were
-- why: removed for their age are not counted. The number of commits is returned.
-- index: checkpoint_due_head_pkey, flush_log_pkey, checkpoint_due_pkey
WITH head AS MATERIALIZED (
  SELECT number FROM {agents}.checkpoint_due_head WHERE one FOR NO KEY UPDATE
), page AS MATERIALIZED (
  SELECT l.number, l.committed_at, l.agent_ids
    FROM {agents}.flush_log AS l
   WHERE l.number > (SELECT number FROM head)
   ORDER BY l.number
   LIMIT $1
), counted AS (
  INSERT INTO {agents}.checkpoint_due AS d (agent_id, writes, since)
  SELECT a, count(*), min(p.committed_at)
    FROM page AS p, unnest(p.agent_ids) AS a
   WHERE NOT a = ANY ($2::uuid[])
   GROUP BY a
   ORDER BY a
  ON CONFLICT (agent_id) DO UPDATE SET writes = d.writes + excluded.writes, since = CASE WHEN d.writes = 0 THEN excluded.since ELSE d.since END
), moved AS (
  UPDATE {agents}.checkpoint_due_head
     SET number = (SELECT max(number) FROM page)
   WHERE one AND EXISTS (SELECT FROM page)
)
SELECT count(*) FROM page

-- name: due_claim
-- why: those that have changed $1 times, or whose first change is $2 seconds ago, the oldest first, $3 at most; nobody
-- why: else takes them for $4 seconds, so one that fails, or whose process dies, comes again then, and keeps nobody up.
-- why: One whose name is not registered yet waits for that. It looks at what has changed lately only.
-- index: checkpoint_due_pkey, registry_pkey
WITH ripe AS MATERIALIZED (
  SELECT d.agent_id, r.name
    FROM {agents}.checkpoint_due AS d
    JOIN {agents}.registry AS r ON r.agent_id = d.agent_id
   WHERE (d.writes >= $1::bigint OR d.since <= clock_timestamp() - $2::double precision * interval '1 second')
     AND d.writes > 0 AND d.not_before <= clock_timestamp()
   ORDER BY d.since
   LIMIT $3
     FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE {agents}.checkpoint_due AS d SET not_before = clock_timestamp() + $4::double precision * interval '1 second'
  FROM ripe AS r
 WHERE d.agent_id = r.agent_id
RETURNING d.agent_id, r.name, d.writes, clock_timestamp() AS looked_at

-- name: due_done
-- why: what had changed when it was claimed is kept by now; what has changed since counts for the next one, from the look
-- why: on.
-- index: checkpoint_due_pkey
UPDATE {agents}.checkpoint_due SET writes = greatest(0, writes - $2), since = $3, not_before = '-infinity'
 WHERE agent_id = $1
RETURNING writes

-- name: due_over
-- why: an agent that has not changed since takes no room.
-- index: checkpoint_due_pkey
DELETE FROM {agents}.checkpoint_due WHERE agent_id = $1 AND writes = 0
