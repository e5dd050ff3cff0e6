-- agents.state: written by flushes alone, read by key, by agent, and in key order.
-- Times travel as microseconds since 1970: `'epoch' + n * interval '1 microsecond'` and the numeric that extract()
-- gives are exact, a double would not be.

-- name: flush
-- why: one round trip and one commit per batch. The epoch's row, locked FOR SHARE, is read again after a wait for
-- why: whoever changed it (EvalPlanQual), so a flush that waited finds no guard and writes nothing (F-inc). EXISTS
-- why: over the CTE is a one-time filter: the guard is taken before the first row is looked at.
-- why: Up to gc_floor, which stands on the same row, nothing is written unless $19 is the round of collections under
-- why: which KV was asked for these very rows (rule 12, F-gc).
-- why: Columns travel as joined text, which costs asyncpg a third of an array and the server no more (measured);
-- why: uuids do not, for their text form is dear to parse. $8 … $12 are NULL when the whole batch has the default.
-- why: The commit takes its number last of all, after its heartbeat: from then on it holds back other commits until it
-- why: is over, and all take these locks in one order. What changed nothing has no number.
-- index: epochs_pkey, state_pkey, flushers_pkey, flush_head_pkey, flush_log_pkey
WITH guard AS MATERIALIZED (
  SELECT gc_epoch, gc_version, gc_round FROM {agents}.epochs WHERE epoch = $1 AND incarnation = $2 FOR SHARE
), applied AS (
  INSERT INTO {agents}.state AS s
         (agent_id, key, value, version, kv_time, epoch, raw, deleted, quarantined, expires_at, updated_at)
  SELECT a, k, nullif(v, '')::jsonb, r, timestamptz 'epoch' + t * interval '1 microsecond', coalesce(e, $1), b,
         coalesce(d, false), coalesce(q, false), timestamptz 'epoch' + x * interval '1 microsecond', now()
    FROM unnest($3::uuid[], string_to_array($4::text, E'\x1A|'), string_to_array($5::text, E'\x1F'),
                $6::text::bigint[], $7::text::bigint[], $8::text::bigint[], $9::bytea[], $10::text::boolean[],
                $11::text::boolean[], $12::text::bigint[]) AS u (a, k, v, r, t, e, b, d, q, x)
   WHERE EXISTS (SELECT FROM guard)
     AND ((coalesce(e, $1), r) > (SELECT gc_epoch, gc_version FROM guard) OR $19 = (SELECT gc_round FROM guard))
  ON CONFLICT (agent_id, key) DO UPDATE
     SET value = excluded.value, raw = excluded.raw, version = excluded.version, epoch = excluded.epoch,
         kv_time = excluded.kv_time, deleted = excluded.deleted, quarantined = excluded.quarantined,
         expires_at = excluded.expires_at, updated_at = excluded.updated_at
   WHERE (s.epoch, s.version) < (excluded.epoch, excluded.version)
  RETURNING s.agent_id, s.key
), beat AS (
  INSERT INTO {agents}.flushers AS f
         (flusher_id, store_id, epoch, high_water, kv_time, committed_at, commits, rows, violations, stats)
  SELECT $13, $14, $1, $15, timestamptz 'epoch' + $16::bigint * interval '1 microsecond', now(), 1,
         (SELECT count(*) FROM applied), $17, $18::jsonb
   WHERE EXISTS (SELECT FROM guard)
  ON CONFLICT (flusher_id) DO UPDATE
     SET store_id = excluded.store_id, epoch = excluded.epoch, committed_at = excluded.committed_at,
         high_water = CASE WHEN f.epoch = excluded.epoch
                           THEN greatest(f.high_water, excluded.high_water) ELSE excluded.high_water END,
         kv_time = CASE WHEN f.epoch = excluded.epoch
                        THEN greatest(f.kv_time, excluded.kv_time) ELSE excluded.kv_time END,
         commits = f.commits + 1, rows = f.rows + excluded.rows, violations = excluded.violations,
         stats = coalesce(excluded.stats, f.stats)
  RETURNING 1
), head AS (
  INSERT INTO {agents}.flush_head AS h (one, number, committed_at)
  SELECT true, 1, clock_timestamp() WHERE EXISTS (SELECT FROM applied) AND EXISTS (SELECT FROM beat)
  ON CONFLICT (one) DO UPDATE SET number = h.number + 1, committed_at = clock_timestamp()
  RETURNING number, committed_at
), logged AS (
  INSERT INTO {agents}.flush_log (number, committed_at, agent_ids, keys)
  SELECT number, committed_at, agent_ids, keys
    FROM head, (SELECT array_agg(agent_id) AS agent_ids, array_agg(key) AS keys FROM applied) AS a
)
SELECT (SELECT count(*) FROM applied) AS applied,
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS committed_us, gc_epoch, gc_version, gc_round
  FROM guard

-- name: read
-- why: a key that KV no longer holds. Where SQL does not have it either, a mark says that the agent is a fork whose values
-- why: are still to be copied; a key that is there costs no look for that.
-- index: state_pkey, forks_pkey
(SELECT agent_id, key, value::text AS value, raw, version, epoch,
       (extract(epoch FROM kv_time) * 1000000)::bigint AS kv_time_us, deleted, quarantined,
       (extract(epoch FROM expires_at) * 1000000)::bigint AS expires_us
  FROM {agents}.state
 WHERE agent_id = $1 AND key = $2)
UNION ALL
SELECT agent_id, NULL, NULL, NULL, -1, 0, 0, NULL, NULL, NULL FROM {agents}.forks WHERE agent_id = $1
LIMIT 1

-- name: read_many
-- why: get_many's keys that KV no longer holds, and the mark of a fork as above.
-- index: state_pkey, forks_pkey
SELECT agent_id, key, value::text AS value, raw, version, epoch,
       (extract(epoch FROM kv_time) * 1000000)::bigint AS kv_time_us, deleted, quarantined,
       (extract(epoch FROM expires_at) * 1000000)::bigint AS expires_us
  FROM {agents}.state
 WHERE agent_id = $1 AND key = ANY ($2::text[])
UNION ALL
SELECT agent_id, NULL, NULL, NULL, -1, 0, 0, NULL, NULL, NULL FROM {agents}.forks WHERE agent_id = $1

-- name: page
-- why: listing and hydration, a page at a time. A prefix is a range, for the key's collation is "C"; $4 is above
-- why: every key of the prefix. Only live rows when $6; expiry by the KV server's time $7 where it is given. A page
-- why: ends before its text exceeds $8, one row at least (I15): nothing is decompressed for that, the ratios are what
-- why: the two methods can reach at most; and a large value is not even read before its row is in the page.
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
         WHERE agent_id = $1 AND key > $2 AND key >= $3 AND key < $4
           AND (NOT $6::boolean OR (NOT deleted AND (
                 expires_at IS NULL
                 OR expires_at > coalesce(timestamptz 'epoch' + $7::bigint * interval '1 microsecond', now()))))
         ORDER BY key
         LIMIT $5
      ) AS s
    WINDOW rows_so_far AS (ORDER BY key ROWS UNBOUNDED PRECEDING)
  ) AS sized
 WHERE place = 1 OR bytes <= $8
 ORDER BY key

-- name: keys_page
-- why: the keys of an agent in their order, for those who look; tombstones stay away.
-- index: state_pkey
SELECT key FROM {agents}.state
 WHERE agent_id = $1 AND key > $2 AND key >= $3 AND key < $4 AND NOT deleted
 ORDER BY key
 LIMIT $5

-- name: versions
-- why: which of these writes are durable: receipts and flush() ask about many keys at once (rule 1).
-- index: state_pkey
SELECT s.agent_id, s.key, s.epoch, s.version, (extract(epoch FROM s.kv_time) * 1000000)::bigint AS kv_time_us
  FROM unnest($1::uuid[], $2::text[]) AS u (a, k)
  JOIN {agents}.state AS s ON s.agent_id = u.a AND s.key = u.k

-- name: newer
-- why: of many entries of KV those that SQL has newer, seldom any (rule 4): the comparison costs a client least where
-- why: the rows are. Columns travel as in `flush`.
-- index: state_pkey
SELECT u.n, s.epoch, s.version, (extract(epoch FROM s.kv_time) * 1000000)::bigint AS kv_time_us
  FROM unnest($1::uuid[], string_to_array($2::text, E'\x1A|'), $3::text::bigint[], $4::text::bigint[])
       WITH ORDINALITY AS u (a, k, e, r, n)
  JOIN {agents}.state AS s ON s.agent_id = u.a AND s.key = u.k
 WHERE (s.epoch, s.version) > (u.e, u.r)

-- name: count_rows
-- why: exact while that is cheap, else what the last vacuum or analyze found.
-- index: none
SELECT CASE WHEN pg_relation_size(c.oid) > 32 * 1024 * 1024 AND c.reltuples >= 0 THEN c.reltuples::bigint
            ELSE (SELECT count(*) FROM {agents}.state)
        END
  FROM pg_class AS c
 WHERE c.oid = '{agents}.state'::regclass

-- name: newer_than
-- why: a watch catches up after a gap with what KV has evicted since. Pages in key order, of the agents up to $3:
-- why: one agent is its part of the primary key, all agents are the whole table, once per resumption. Bytes as above.
-- index: state_pkey
SELECT r.name, s.agent_id, s.key, s.value::text AS value, s.raw, s.version, s.epoch,
       (extract(epoch FROM s.kv_time) * 1000000)::bigint AS kv_time_us, s.deleted, s.quarantined,
       (extract(epoch FROM s.expires_at) * 1000000)::bigint AS expires_us
  FROM (
    SELECT p.*, row_number() OVER rows_so_far AS place,
           sum(coalesce(octet_length(raw), 0) + coalesce(pg_column_size(value) * CASE pg_column_compression(value)
               WHEN 'pglz' THEN 90 WHEN 'lz4' THEN 255 ELSE 1 END, 0)) OVER rows_so_far AS bytes
      FROM (
        SELECT agent_id, key, value, raw, version, epoch, kv_time, deleted, quarantined, expires_at
          FROM {agents}.state
         WHERE (epoch, version) > ($1, $2) AND agent_id <= $3 AND (agent_id, key) > ($4, $5::text COLLATE "C")
         ORDER BY agent_id, key
         LIMIT $6
      ) AS p
    WINDOW rows_so_far AS (ORDER BY agent_id, key ROWS UNBOUNDED PRECEDING)
  ) AS s
  LEFT JOIN {agents}.registry AS r ON r.agent_id = s.agent_id
 WHERE s.place = 1 OR s.bytes <= $7
 ORDER BY s.agent_id, s.key
