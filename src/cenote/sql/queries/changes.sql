-- agents.flush_head and agents.flush_log: the commits of flushes, numbered.

-- name: flush_head
-- why: whether the database has gone back without a restart (rule 5), and where a feed begins (rule 25).
-- index: flush_head_pkey
SELECT number, (extract(epoch FROM committed_at) * 1000000)::bigint AS committed_us
  FROM {agents}.flush_head
 WHERE one

-- name: flushes
-- why: a page of the feed. It begins with the commit that was read last: if that one is gone, or stands there with
-- why: another time, then it was removed for its age, or the database has gone back (rule 25).
-- index: flush_log_pkey
SELECT number, (extract(epoch FROM committed_at) * 1000000)::bigint AS committed_us, agent_ids, keys
  FROM {agents}.flush_log
 WHERE number >= $1
 ORDER BY number
 LIMIT $2

-- name: changed_rows
-- why: what SQL holds now of the keys that a page of the feed names, with the SQL-escaped names of their agents.
-- index: state_pkey, registry_pkey
SELECT r.name, u.a, u.k, s.agent_id, s.key, s.value::text AS value, s.raw, s.version, s.epoch,
       (extract(epoch FROM s.kv_time) * 1000000)::bigint AS kv_time_us, s.deleted, s.quarantined,
       (extract(epoch FROM s.expires_at) * 1000000)::bigint AS expires_us
  FROM unnest($1::uuid[], $2::text[]) AS u (a, k)
  LEFT JOIN {agents}.state AS s ON s.agent_id = u.a AND s.key = u.k
  LEFT JOIN {agents}.registry AS r ON r.agent_id = u.a

-- name: prune_flushes
-- why: bounded: the oldest rows are looked at, so many at a time, and the newest is never removed, for a feed that has
-- why: read everything stands on it.
-- index: flush_log_pkey
DELETE FROM {agents}.flush_log
 WHERE number IN (SELECT number
                    FROM (SELECT number, committed_at FROM {agents}.flush_log ORDER BY number LIMIT $2) AS oldest
                   WHERE committed_at < clock_timestamp() - $1::double precision * interval '1 second'
                     AND number < (SELECT h.number FROM {agents}.flush_head AS h WHERE h.one))
