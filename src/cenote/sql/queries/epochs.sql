-- agents.epochs and agents.flushers: a handful of rows each.

-- name: epochs
-- why: which epoch a message belongs to is a function of its KV time and these rows (rule 3).
-- index: epochs_pkey
SELECT epoch, (extract(epoch FROM from_time) * 1000000)::bigint AS from_us, store_id::text AS store_id,
       stream_created, incarnation, sql_identity, reason
  FROM {agents}.epochs
 ORDER BY epoch

-- name: first_epoch
-- why: only into an empty table; the caller holds the advisory lock.
-- index: none
INSERT INTO {agents}.epochs (epoch, from_time, store_id, stream_created, incarnation, sql_identity, reason)
SELECT 1, timestamptz 'epoch' + $1::bigint * interval '1 microsecond', $2, $3, $4, $5, $6
 WHERE NOT EXISTS (SELECT FROM {agents}.epochs)

-- name: end_epoch
-- why: compare-and-set; waits for the flushes that hold the row FOR SHARE, and fails those that come after.
-- index: epochs_pkey
UPDATE {agents}.epochs SET incarnation = NULL WHERE epoch = $1 AND incarnation = $2

-- name: next_epoch
-- why: after end_epoch, in its transaction.
-- index: epochs_pkey
INSERT INTO {agents}.epochs (epoch, from_time, store_id, stream_created, incarnation, sql_identity, reason)
VALUES ($1, timestamptz 'epoch' + $2::bigint * interval '1 microsecond', $3, $4, $5, $6, $7)

-- name: restamp
-- why: rows flushed under the old epoch's number that belong to the new one (rule 4). Reads the whole table, once
-- why: per change of epoch; writes few rows.
-- index: none
UPDATE {agents}.state SET epoch = $2
 WHERE epoch = $1 AND kv_time >= timestamptz 'epoch' + $3::bigint * interval '1 microsecond'

-- name: newest_flushed
-- why: where the life before a rewind ends: the newest time flushed under a sequence that is not lower, and before a
-- why: message of the later life where one was found (rule 4). Reads the whole table, once per change of epoch.
-- index: none
SELECT (extract(epoch FROM max(kv_time)) * 1000000)::bigint
  FROM (SELECT kv_time FROM {agents}.state WHERE epoch = $1 AND version >= $2
        UNION ALL
        SELECT kv_time FROM {agents}.flushers WHERE epoch = $1 AND high_water >= $2) AS flushed
 WHERE kv_time < coalesce(timestamptz 'epoch' + $3::bigint * interval '1 microsecond', 'infinity')

-- name: set_incarnation
-- why: a restarted KV server is the same epoch with another incarnation (F-inc).
-- index: epochs_pkey
UPDATE {agents}.epochs SET incarnation = $3 WHERE epoch = $1 AND incarnation = $2

-- name: heartbeats
-- why: who flushes, how far, and since when not any more (rule 19).
-- index: none
SELECT flusher_id, store_id::text AS store_id, epoch, high_water,
       (extract(epoch FROM kv_time) * 1000000)::bigint AS kv_time_us,
       (extract(epoch FROM committed_at) * 1000000)::bigint AS committed_us,
       (extract(epoch FROM clock_timestamp() - committed_at) * 1000)::bigint AS age_ms,
       commits, rows, violations, stats::text AS stats
  FROM {agents}.flushers
 ORDER BY committed_at DESC

-- name: high_water
-- why: a stream that ends below it, or in whose time order a message disagrees, was rewound (rules 3, 4).
-- index: none
SELECT max(high_water), (extract(epoch FROM max(kv_time)) * 1000000)::bigint
  FROM {agents}.flushers
 WHERE epoch = $1

-- name: home
-- why: the data directory of the embedded NATS whose stream is flushed here; another one's stream is refused (rule 8).
-- index: meta_pkey
SELECT value FROM {agents}.meta WHERE name = 'kv_home'

-- name: remember_home
-- why: see above; empty for a NATS that was given by URL.
-- index: meta_pkey
INSERT INTO {agents}.meta AS m (name, value) VALUES ('kv_home', $1)
ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: newest_store
-- why: whose database it is, asked of each new connection (rule 8).
-- index: epochs_pkey
SELECT store_id::text FROM {agents}.epochs ORDER BY epoch DESC LIMIT 1
