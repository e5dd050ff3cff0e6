-- agents.counters, and agents.counter_stream with its one row.

-- name: counter_head
-- why: how far the counters have been flushed; no row: nobody ever counted here.
-- index: counter_stream_pkey
SELECT epoch, incarnation, flushed FROM {agents}.counter_stream

-- name: begin_counting
-- why: the row that everybody locks must be there first; at the first counter, and then never again.
-- index: counter_stream_pkey
INSERT INTO {agents}.counter_stream (one, epoch, incarnation, flushed) VALUES (true, 0, '', 0)
ON CONFLICT DO NOTHING

-- name: hold_counters
-- why: one mender at a time, and no flush beside it.
-- index: counter_stream_pkey
SELECT epoch, incarnation, flushed FROM {agents}.counter_stream FOR UPDATE

-- name: counters_of_epoch
-- why: what SQL holds, to be compared with a stream that may have lost it. Reads the whole table, once for each start
-- why: of the KV server.
-- index: none
SELECT name, value::text, version FROM {agents}.counters WHERE epoch = $1

-- name: flush_counters
-- why: compare-and-set on the row of the stream and the totals beside it, in one statement, hence one commit.
-- index: counter_stream_pkey, counters_pkey
WITH held AS (
  UPDATE {agents}.counter_stream SET flushed = $4
   WHERE epoch = $1 AND incarnation = $2 AND flushed = $3
  RETURNING epoch
), written AS (
  INSERT INTO {agents}.counters AS c (name, value, version, epoch, kv_time, updated_at)
  SELECT u.name, u.value::numeric, u.version, held.epoch,
         timestamptz 'epoch' + u.kv_time_us * interval '1 microsecond', now()
    FROM held, unnest($5::text[], $6::text[], $7::bigint[], $8::bigint[]) AS u (name, value, version, kv_time_us)
  ON CONFLICT (name) DO UPDATE
     SET value = excluded.value, version = excluded.version, epoch = excluded.epoch, kv_time = excluded.kv_time,
         updated_at = excluded.updated_at
   WHERE (c.epoch, c.version) < (excluded.epoch, excluded.version)
)
SELECT count(*) FROM held

-- name: settle_counters
-- why: a life of the stream begins, or the same goes on at another start of the KV server; under `hold_counters`.
-- index: counter_stream_pkey
UPDATE {agents}.counter_stream SET epoch = $1, incarnation = $2, flushed = $3

-- name: restamp_counters
-- why: what the stream still has keeps its versions in the next epoch.
-- index: none
UPDATE {agents}.counters SET epoch = $2 WHERE epoch = $1

-- name: given_back
-- why: what the stream has got back stands at other sequences now.
-- index: counters_pkey
UPDATE {agents}.counters AS c SET epoch = $1, version = u.version, value = u.value::numeric
  FROM unnest($2::text[], $3::bigint[], $4::text[]) AS u (name, version, value)
 WHERE c.name = u.name
