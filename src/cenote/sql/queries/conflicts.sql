-- The conflict log: live rows of one reserved agent, whose keys sort by time.

-- name: conflicts_before
-- why: newest first, a page at a time: what is asked for is nearly always the end of the log. A page ends before its
-- why: text exceeds $5, one row at least (I15), as in `page`.
-- index: state_pkey
SELECT agent_id, key, value::text AS value, raw, version, epoch,
       (extract(epoch FROM kv_time) * 1000000)::bigint AS kv_time_us, deleted, quarantined,
       (extract(epoch FROM expires_at) * 1000000)::bigint AS expires_us
  FROM (
    SELECT s.*, row_number() OVER rows_so_far AS place,
           sum(coalesce(octet_length(raw), 0) + coalesce(pg_column_size(value) * CASE pg_column_compression(value)
               WHEN 'pglz' THEN 90 WHEN 'lz4' THEN 255 ELSE 1 END, 0)) OVER rows_so_far AS bytes
      FROM (
        SELECT agent_id, key, value, raw, version, epoch, kv_time, deleted, quarantined, expires_at
          FROM {agents}.state
         WHERE agent_id = $1 AND key < $2 AND NOT deleted
           AND (expires_at IS NULL OR expires_at > timestamptz 'epoch' + $3::bigint * interval '1 microsecond')
         ORDER BY key DESC
         LIMIT $4
      ) AS s
    WINDOW rows_so_far AS (ORDER BY key DESC ROWS UNBOUNDED PRECEDING)
  ) AS sized
 WHERE place = 1 OR bytes <= $5
 ORDER BY key DESC

-- name: conflicts_count
-- why: the bound of the log, once in a collection round.
-- index: state_pkey
SELECT count(*)
  FROM {agents}.state
 WHERE agent_id = $1 AND NOT deleted
   AND (expires_at IS NULL OR expires_at > timestamptz 'epoch' + $2::bigint * interval '1 microsecond')

-- name: conflicts_oldest
-- why: the keys of those that are to leave, the oldest first.
-- index: state_pkey
SELECT key
  FROM {agents}.state
 WHERE agent_id = $1 AND key > $2 AND NOT deleted
   AND (expires_at IS NULL OR expires_at > timestamptz 'epoch' + $3::bigint * interval '1 microsecond')
 ORDER BY key
 LIMIT $4
