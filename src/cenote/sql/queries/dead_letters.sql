-- agents.dead_letters.

-- name: quarantine
-- why: the row is advanced and the letter written together or not at all (rule 14), under the guard and with the
-- why: heartbeat of a flush; parameters as in flush_any.
-- index: epochs_pkey, state_pkey, flushers_pkey, flush_head_pkey, flush_log_pkey
WITH guard AS MATERIALIZED (
  SELECT gc_epoch, gc_version, gc_round FROM {agents}.epochs WHERE epoch = $1 AND incarnation = $2 FOR SHARE
), applied AS (
  INSERT INTO {agents}.state AS s
         (agent_id, key, raw, version, epoch, kv_time, deleted, quarantined, expires_at, updated_at)
  SELECT $3, $4, $5, $6, $8, timestamptz 'epoch' + $7::bigint * interval '1 microsecond', false, true,
         timestamptz 'epoch' + $15::bigint * interval '1 microsecond', now()
   WHERE EXISTS (SELECT FROM guard)
     AND (($8::bigint, $6::bigint) > (SELECT gc_epoch, gc_version FROM guard) OR $18 = (SELECT gc_round FROM guard))
  ON CONFLICT (agent_id, key) DO UPDATE
     SET value = NULL, raw = excluded.raw, version = excluded.version, epoch = excluded.epoch,
         kv_time = excluded.kv_time, deleted = false, quarantined = true,
         expires_at = excluded.expires_at, updated_at = excluded.updated_at
   WHERE (s.epoch, s.version) < (excluded.epoch, excluded.version)
  RETURNING s.agent_id, s.key, s.epoch, s.version, s.kv_time, s.raw
), letter AS (
  INSERT INTO {agents}.dead_letters (agent_id, key, epoch, version, kv_time, reason, raw, envelope)
  SELECT agent_id, key, epoch, version, kv_time, $16, raw, $17 FROM applied
), beat AS (
  INSERT INTO {agents}.flushers AS f
         (flusher_id, store_id, epoch, high_water, kv_time, committed_at, commits, rows, violations, stats)
  SELECT $9, $10, $1, $11, timestamptz 'epoch' + $12::bigint * interval '1 microsecond', now(), 1,
         (SELECT count(*) FROM applied), $13, $14::jsonb
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

-- name: dead_letters
-- why: what an operator has to decide about.
-- index: dead_letters_open
SELECT id, agent_id, key, epoch, version, (extract(epoch FROM kv_time) * 1000000)::bigint AS kv_time_us, reason,
       raw, envelope, (extract(epoch FROM created_at) * 1000000)::bigint AS created_us
  FROM {agents}.dead_letters
 WHERE resolved_at IS NULL AND id > $1
 ORDER BY id
 LIMIT $2

-- name: count_dead_letters
-- why: health tells of them; to know that there are very many is enough.
-- index: dead_letters_open
SELECT count(*) FROM (SELECT 1 FROM {agents}.dead_letters WHERE resolved_at IS NULL LIMIT $1) AS open

-- name: dead_letter
-- why: one of them, before it is tried again.
-- index: dead_letters_pkey
SELECT id, agent_id, key, epoch, version, (extract(epoch FROM kv_time) * 1000000)::bigint AS kv_time_us, reason,
       raw, envelope, (extract(epoch FROM created_at) * 1000000)::bigint AS created_us
  FROM {agents}.dead_letters
 WHERE resolved_at IS NULL AND id = $1

-- name: retry_dead_letter
-- why: the same version again, so not through the fence but only over the very row that was quarantined. What SQL can
-- why: query changes by it, so it is a commit of the feed like a flush, and takes its number as last lock of all.
-- index: dead_letters_pkey, state_pkey, flush_head_pkey, flush_log_pkey
WITH letter AS (
  UPDATE {agents}.dead_letters SET resolved_at = now() WHERE id = $1 AND resolved_at IS NULL
  RETURNING agent_id, key, epoch, version
), mended AS (
  UPDATE {agents}.state AS s
     SET value = $2::text::jsonb, raw = $3, quarantined = false, updated_at = now()
    FROM letter AS l
   WHERE s.agent_id = l.agent_id AND s.key = l.key AND s.epoch = l.epoch AND s.version = l.version AND s.quarantined
  RETURNING s.agent_id, s.key
), head AS (
  INSERT INTO {agents}.flush_head AS h (one, number, committed_at)
  SELECT true, 1, clock_timestamp() WHERE EXISTS (SELECT FROM mended)
  ON CONFLICT (one) DO UPDATE SET number = h.number + 1, committed_at = clock_timestamp()
  RETURNING number, committed_at
), logged AS (
  INSERT INTO {agents}.flush_log (number, committed_at, agent_ids, keys)
  SELECT number, committed_at, ARRAY[agent_id], ARRAY[key] FROM head, mended
)
SELECT EXISTS (SELECT FROM mended)

-- name: discard_dead_letter
-- why: the operator has seen it.
-- index: dead_letters_pkey
UPDATE {agents}.dead_letters SET resolved_at = now() WHERE id = $1 AND resolved_at IS NULL

-- name: put_aside
-- why: adopting another NATS replaces rows; their last value must not vanish without a word (rule 8).
-- index: state_pkey
INSERT INTO {agents}.dead_letters (agent_id, key, epoch, version, kv_time, reason, raw, envelope)
SELECT s.agent_id, s.key, s.epoch, s.version, s.kv_time, $3,
       coalesce(s.raw, convert_to(s.value::text, 'UTF8'), ''::bytea), ''
  FROM unnest($1::uuid[], $2::text[]) AS u (a, k)
  JOIN {agents}.state AS s ON s.agent_id = u.a AND s.key = u.k
 WHERE NOT EXISTS (SELECT FROM {agents}.dead_letters AS l
                    WHERE l.agent_id = s.agent_id AND l.key = s.key AND l.epoch = s.epoch AND l.version = s.version)
