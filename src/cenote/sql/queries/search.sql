-- Content search over agents.state, and the two indexes that it may have. A filter's condition takes the place of
-- `true` (sql/filters.py: nothing that a user gives is in its text).

-- name: search_scan
-- why: rows in key order that hold what is asked for. Whether a GIN index on the value exists (`inline`) or not (`off`)
-- why: the text is the same: the planner takes what there is. Large values and what jsonb cannot show are not looked
-- why: into. A page ends before its text exceeds $7, one row at least (I15), as in `page`.
-- index: state_pkey, state_value
SELECT r.name, s.agent_id, s.key, s.value::text AS value, s.raw, s.version, s.epoch,
       (extract(epoch FROM s.kv_time) * 1000000)::bigint AS kv_time_us, s.deleted, s.quarantined,
       (extract(epoch FROM s.expires_at) * 1000000)::bigint AS expires_us
  FROM (
    SELECT p.*, row_number() OVER rows_so_far AS place,
           sum(coalesce(octet_length(raw), 0) + coalesce(pg_column_size(value) * CASE pg_column_compression(value)
               WHEN 'pglz' THEN 90 WHEN 'lz4' THEN 255 ELSE 1 END, 0)) OVER rows_so_far AS bytes
      FROM (
        SELECT s.*
          FROM {agents}.state AS s
         WHERE s.agent_id BETWEEN $1 AND $2 AND (s.agent_id, s.key) > ($1, $3::text COLLATE "C")
           AND s.key >= $4 AND s.key < $5
           AND NOT s.deleted AND s.value IS NOT NULL AND coalesce(substr(s.raw, 1, 1) <> '\x00', true)
           AND (s.expires_at IS NULL OR s.expires_at > timestamptz 'epoch' + $8::bigint * interval '1 microsecond')
           AND s.agent_id <> ALL ($9::uuid[])
           AND true
         ORDER BY s.agent_id, s.key
         LIMIT $6
      ) AS p
    WINDOW rows_so_far AS (ORDER BY agent_id, key ROWS UNBOUNDED PRECEDING)
  ) AS s
  LEFT JOIN {agents}.registry AS r ON r.agent_id = s.agent_id
 WHERE s.place = 1 OR s.bytes <= $7
 ORDER BY s.agent_id, s.key

-- name: search_projected
-- why: the same rows by way of the projection: its index tells where $10 is contained, the feed what has changed since;
-- why: what is there now is judged by the row itself, looked up by its key (OFFSET 0 keeps it so). All in one snapshot,
-- why: so a projection that is late costs time, and never an answer. A row without a key: there is none, or not all of
-- why: it, or the feed was pruned before it was read.
-- index: search_value, flush_log_pkey, state_pkey, search_head_pkey, flush_head_pkey
WITH ready AS MATERIALIZED (
  SELECT h.number
    FROM {agents}.search_head AS h
   WHERE h.one AND h.agent_id IS NULL
     AND (h.number = coalesce((SELECT number FROM {agents}.flush_head WHERE one), 0)
          OR EXISTS (SELECT FROM {agents}.flush_log AS l WHERE l.number = h.number + 1))
), candidates AS MATERIALIZED (
  SELECT p.agent_id, p.key
    FROM {agents}.search AS p
   WHERE p.value @> $10::text::jsonb AND p.agent_id BETWEEN $1 AND $2
   UNION
  SELECT u.a, u.k
    FROM {agents}.flush_log AS l, unnest(l.agent_ids, l.keys) AS u (a, k)
   WHERE l.number > (SELECT number FROM ready) AND u.a BETWEEN $1 AND $2
)
SELECT r.name, s.agent_id, s.key, s.value::text AS value, s.raw, s.version, s.epoch,
       (extract(epoch FROM s.kv_time) * 1000000)::bigint AS kv_time_us, s.deleted, s.quarantined,
       (extract(epoch FROM s.expires_at) * 1000000)::bigint AS expires_us
  FROM (
    SELECT p.*, row_number() OVER rows_so_far AS place,
           sum(coalesce(octet_length(raw), 0) + coalesce(pg_column_size(value) * CASE pg_column_compression(value)
               WHEN 'pglz' THEN 90 WHEN 'lz4' THEN 255 ELSE 1 END, 0)) OVER rows_so_far AS bytes
      FROM (
        SELECT s.*
          FROM candidates AS c
         CROSS JOIN LATERAL (
               SELECT * FROM {agents}.state AS s WHERE s.agent_id = c.agent_id AND s.key = c.key OFFSET 0) AS s
         WHERE (c.agent_id, c.key) > ($1, $3::text COLLATE "C")
           AND c.key >= $4 AND c.key < $5
           AND NOT s.deleted AND s.value IS NOT NULL AND coalesce(substr(s.raw, 1, 1) <> '\x00', true)
           AND (s.expires_at IS NULL OR s.expires_at > timestamptz 'epoch' + $8::bigint * interval '1 microsecond')
           AND s.agent_id <> ALL ($9::uuid[])
           AND true
         ORDER BY s.agent_id, s.key
         LIMIT $6
      ) AS p
    WINDOW rows_so_far AS (ORDER BY agent_id, key ROWS UNBOUNDED PRECEDING)
  ) AS s
  LEFT JOIN {agents}.registry AS r ON r.agent_id = s.agent_id
 WHERE (s.place = 1 OR s.bytes <= $7) AND EXISTS (SELECT FROM ready)
 UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
 WHERE NOT EXISTS (SELECT FROM ready)
 ORDER BY agent_id, key

-- name: search_state_of
-- why: how far the projection is, and whether the index on the state is there.
-- index: search_head_pkey, flush_head_pkey, flush_log_pkey
SELECT (SELECT i.indisvalid FROM pg_index AS i WHERE i.indexrelid = to_regclass('{agents}.state_value')) AS inline,
       h.one AS projected, h.one AND h.agent_id IS NULL AS filled, f.number - h.number AS commits,
       (SELECT extract(epoch FROM clock_timestamp() - l.committed_at) * 1000
          FROM {agents}.flush_log AS l WHERE l.number > h.number ORDER BY l.number LIMIT 1)::bigint AS lag_ms
  FROM (SELECT) AS always
  LEFT JOIN {agents}.search_head AS h ON h.one
  LEFT JOIN {agents}.flush_head AS f ON f.one

-- name: search_begin
-- why: what is committed from here on the feed brings, all else is brought by filling.
-- index: search_head_pkey, flush_head_pkey
INSERT INTO {agents}.search_head (one, number, agent_id, key)
SELECT true, coalesce((SELECT number FROM {agents}.flush_head WHERE one), 0), $1, ''
    ON CONFLICT (one) DO NOTHING

-- name: search_lock
-- why: one at a time moves the head; whoever waited begins his next statement with a snapshot of his own. A gap in the
-- why: feed, which was pruned meanwhile, is filled anew.
-- index: search_head_pkey, flush_head_pkey, flush_log_pkey
SELECT h.number, h.agent_id, h.key,
       h.number <> coalesce((SELECT number FROM {agents}.flush_head WHERE one), 0)
       AND NOT EXISTS (SELECT FROM {agents}.flush_log AS l WHERE l.number = h.number + 1) AS gap
  FROM {agents}.search_head AS h
 WHERE h.one
   FOR UPDATE

-- name: search_refill
-- why: begin anew; what is there already stays, for nobody believes it.
-- index: search_head_pkey, flush_head_pkey
UPDATE {agents}.search_head
   SET number = coalesce((SELECT number FROM {agents}.flush_head WHERE one), 0), agent_id = $1, key = ''
 WHERE one

-- name: search_fill
-- why: the next page of the state in key order, after what the head says. False: that was the last.
-- index: state_pkey, search_pkey, search_head_pkey
WITH page AS (
  SELECT s.agent_id, s.key, s.expires_at,
         CASE WHEN NOT s.deleted AND s.agent_id <> ALL ($4::uuid[]) AND coalesce(substr(s.raw, 1, 1) <> '\x00', true)
              THEN s.value END AS value
    FROM {agents}.state AS s
   WHERE (s.agent_id, s.key) > ($1, $2::text COLLATE "C")
   ORDER BY s.agent_id, s.key
   LIMIT $3
), put AS (
  INSERT INTO {agents}.search AS p (agent_id, key, value, expires_at)
  SELECT agent_id, key, value, expires_at FROM page WHERE value IS NOT NULL
      ON CONFLICT (agent_id, key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at
       WHERE (p.value, p.expires_at) IS DISTINCT FROM (excluded.value, excluded.expires_at)
), last AS (
  SELECT agent_id, key FROM page ORDER BY agent_id DESC, key DESC LIMIT 1
)
UPDATE {agents}.search_head
   SET agent_id = (SELECT agent_id FROM last), key = (SELECT key FROM last)
 WHERE one
RETURNING agent_id IS NOT NULL

-- name: search_feed
-- why: the next commits of the feed, each key once: a key that is rewritten all the time costs the index one update for
-- why: many. What is no longer to be found leaves. Returns how many commits it was.
-- index: flush_log_pkey, state_pkey, search_pkey, search_head_pkey
WITH commits AS MATERIALIZED (
  SELECT number, agent_ids, keys
    FROM {agents}.flush_log
   WHERE number > (SELECT number FROM {agents}.search_head WHERE one)
   ORDER BY number
   LIMIT $1
), found AS MATERIALIZED (
  SELECT c.a, c.k, s.expires_at,
         CASE WHEN NOT s.deleted AND coalesce(substr(s.raw, 1, 1) <> '\x00', true) THEN s.value END AS value
    FROM (SELECT DISTINCT u.a, u.k FROM commits, unnest(agent_ids, keys) AS u (a, k) WHERE u.a <> ALL ($2::uuid[])) AS c
    LEFT JOIN {agents}.state AS s ON s.agent_id = c.a AND s.key = c.k
), put AS (
  INSERT INTO {agents}.search AS p (agent_id, key, value, expires_at)
  SELECT a, k, value, expires_at FROM found WHERE value IS NOT NULL
      ON CONFLICT (agent_id, key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at
       WHERE (p.value, p.expires_at) IS DISTINCT FROM (excluded.value, excluded.expires_at)
), gone AS (
  DELETE FROM {agents}.search AS p USING found AS f WHERE p.agent_id = f.a AND p.key = f.k AND f.value IS NULL
)
UPDATE {agents}.search_head
   SET number = c.number
  FROM (SELECT max(number) AS number, count(*) AS commits FROM commits) AS c
 WHERE one AND c.commits > 0
RETURNING c.commits

-- name: search_expire
-- why: what has expired is in no feed. A minute late, for the clocks of two servers decide.
-- index: search_expiring
DELETE FROM {agents}.search
 WHERE (agent_id, key) IN (SELECT agent_id, key FROM {agents}.search
                            WHERE expires_at < now() - interval '1 minute' LIMIT $1)

-- name: search_end
-- why: `projection` was switched off: nobody asks it from here on.
-- index: search_head_pkey
DELETE FROM {agents}.search_head WHERE one

-- name: search_empty
-- why: in pages, and without TRUNCATE: who looks with a snapshot that still has the head finds all rows, too.
-- index: search_pkey
DELETE FROM {agents}.search
 WHERE (agent_id, key) IN (SELECT agent_id, key FROM {agents}.search LIMIT $1)
   AND NOT EXISTS (SELECT FROM {agents}.search_head WHERE one)

-- name: search_building
-- why: an index that is not valid is being built by somebody, or was left behind half-built.
-- index: none
SELECT EXISTS (SELECT FROM pg_stat_progress_create_index WHERE relid = '{agents}.state'::regclass)

-- name: search_inline_create
-- why: beside the flushes. No transaction can hold it: what is cut off leaves an index that is not valid.
-- index: state_value
CREATE INDEX CONCURRENTLY IF NOT EXISTS state_value ON {agents}.state USING gin (value jsonb_path_ops)

-- name: search_inline_drop
-- why: the same back. `inline` was switched off, or its building was cut off.
-- index: state_value
DROP INDEX CONCURRENTLY IF EXISTS {agents}.state_value
