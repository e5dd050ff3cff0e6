-- agents.repairs, and what a repair asks of agents.state.

-- name: repair_compare
-- why: what SQL holds of these entries, and whether it is the same; jsonb says itself what is equal. Small answers: only
-- why: the rows that differ, and the places that have a row.
-- index: state_pkey
SELECT u.n, s.epoch, s.version, s.quarantined,
       s.deleted = u.d AND s.value IS NOT DISTINCT FROM u.v::jsonb AND s.raw IS NOT DISTINCT FROM u.b
       AND s.expires_at IS NOT DISTINCT FROM timestamptz 'epoch' + u.x * interval '1 microsecond' AS same
  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::boolean[], $6::bigint[])
       WITH ORDINALITY AS u (a, k, v, b, d, x, n)
  JOIN {agents}.state AS s ON s.agent_id = u.a AND s.key = u.k

-- name: repair_rewrite
-- why: a row that has the version of a write, and not its content. The epoch's row as for a flush (F-inc). What SQL shows
-- why: changes by it, so it is a commit of the feed like a flush, and takes its number as last lock of all.
-- index: epochs_pkey, state_pkey, flush_head_pkey, flush_log_pkey
WITH guard AS MATERIALIZED (
  SELECT FROM {agents}.epochs WHERE epoch = $1 AND incarnation = $2 FOR SHARE
), mended AS (
  UPDATE {agents}.state AS s
     SET value = $7::text::jsonb, raw = $8, deleted = $9, quarantined = false,
         expires_at = timestamptz 'epoch' + $10::bigint * interval '1 microsecond', updated_at = now()
   WHERE EXISTS (SELECT FROM guard) AND s.agent_id = $3 AND s.key = $4 AND (s.epoch, s.version) = ($5, $6)
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

-- name: repair_blobs
-- why: which of these large values are there.
-- index: blobs_pkey
SELECT id FROM {agents}.blobs WHERE id = ANY ($1::uuid[])

-- name: repair_references
-- why: a page of rows that refer to a large value; every row of the table is looked at, now and then.
-- index: state_pkey
SELECT agent_id, key, epoch, version, raw
  FROM {agents}.state
 WHERE (agent_id, key) > ($1, $2::text COLLATE "C") AND raw IS NOT NULL AND get_byte(raw || '\x01'::bytea, 0) = 0
   AND NOT deleted
 ORDER BY agent_id, key
 LIMIT $3

-- name: repair_begin
-- why: what is begun here, or was begun and left: whose life of the stream is this one, and of which nothing was heard for
-- why: $7 seconds. It is this process's from now on, whoever held it.
-- index: repairs_pkey
WITH left_over AS (
  SELECT repair_id FROM {agents}.repairs
   WHERE $4::text[] IS NULL AND agents IS NULL AND ended_at IS NULL AND reason = $2 AND dry_run = $3
     AND (epoch, incarnation) = ($5, $6) AND renewed_at < clock_timestamp() - $7::double precision * interval '1 second'
   ORDER BY begun_at DESC
   LIMIT 1
     FOR UPDATE SKIP LOCKED
), goes_on AS (
  UPDATE {agents}.repairs AS r SET renewed_at = clock_timestamp(), holder = $1
    FROM left_over AS l WHERE r.repair_id = l.repair_id
  RETURNING r.repair_id, r.holder, r.after, r.scanned, r.found, r.mended, r.samples, r.open
), begun AS (
  INSERT INTO {agents}.repairs (repair_id, holder, reason, dry_run, agents, epoch, incarnation)
  SELECT $1, $1, $2, $3, $4, $5, $6 WHERE NOT EXISTS (SELECT FROM left_over)
  RETURNING repair_id, holder, after, scanned, found, mended, samples, open
)
SELECT repair_id, holder, after, scanned, found::text, mended::text, samples::text, open::text
  FROM (TABLE goes_on UNION ALL TABLE begun) AS r

-- name: repair_progress
-- why: how far it has come, and whether it is done; nothing from whom it was taken.
-- index: repairs_pkey
UPDATE {agents}.repairs
   SET after = $3, scanned = $4, found = $5::text::jsonb, mended = $6::text::jsonb, samples = $7::text::json,
       open = $8::text::json, renewed_at = clock_timestamp(),
       ended_at = CASE WHEN $9::boolean THEN clock_timestamp() END
 WHERE repair_id = $1 AND holder = $2

-- name: repair_renew
-- why: it goes on, however long a page takes.
-- index: repairs_pkey
UPDATE {agents}.repairs SET renewed_at = clock_timestamp() WHERE repair_id = $1 AND holder = $2

-- name: repair_list
-- why: the newest ones.
-- index: none
SELECT repair_id, holder, after, scanned, found::text AS found, mended::text AS mended, samples::text AS samples,
       open::text AS open, reason, dry_run, begun_at, ended_at
  FROM {agents}.repairs
 ORDER BY begun_at DESC
 LIMIT $1

-- name: repair_forget
-- why: ended ones are kept for a while only, those that found something for longer.
-- index: none
DELETE FROM {agents}.repairs
 WHERE coalesce(ended_at, renewed_at) < clock_timestamp()
       - (CASE WHEN found = '{}' THEN $1 ELSE $2 END)::double precision * interval '1 second'
