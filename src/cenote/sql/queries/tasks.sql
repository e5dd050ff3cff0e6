-- tasks.queue. Whoever finishes a task shows the token of his claim, and his lease must not be over; that is looked for
-- by the id, and without the status, whose index would lead through all that is running. A finished task goes from the
-- queue to the archive in one statement: every snapshot has it exactly once.

-- name: add_tasks
-- why: new tasks; what is there already, by its id or as a live task of the same type and dedupe key, is left alone.
-- Where an id may have been used before, this snapshot must know neither in the queue nor in the archive; and a task that
-- was added after it cannot have reached the archive, for a transaction that is too old adds nothing ($13, $14).
-- index: queue_pkey, queue_dedupe, archive_pkey
INSERT INTO {tasks}.queue (task_id, task_type, payload, raw, metadata, metadata_raw, priority, attempts_max, dedupe_key,
                           created_at, run_at, expires_at)
SELECT n.task_id, n.task_type, n.payload::jsonb, n.raw, n.metadata::jsonb, n.metadata_raw, n.priority, n.attempts_max,
       n.dedupe_key, now(), coalesce(n.run_at, now() + n.delay), now() + n.expires_in
  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::bytea[], $7::smallint[], $8::integer[],
              $9::text[], $10::timestamptz[], $11::interval[], $12::interval[])
    AS n (task_id, task_type, payload, raw, metadata, metadata_raw, priority, attempts_max, dedupe_key, run_at, delay,
          expires_in)
 WHERE NOT $13::boolean
    OR (clock_timestamp() - now() < $14::interval
        AND NOT EXISTS (SELECT FROM {tasks}.everything AS e WHERE e.task_id = n.task_id))
    ON CONFLICT DO NOTHING
RETURNING task_id, created_at, run_at, expires_at

-- name: claim_tasks
-- why: work for one worker: first what another one has lost, then what is due, by priority and time. What has been tried
-- often enough becomes a dead letter here, what came too late expires. The parameters stand in subqueries so that one
-- plan serves them all: planning would take longer than the claim. Tasks are looked for within the array: in a WITH each
-- of them would be written down twice more. Times that each row has travel as their eight bytes: clients read a
-- timestamp in more time than the rest of the row.
-- index: queue_running, queue_ready
UPDATE {tasks}.queue AS q
   SET status = CASE WHEN expires_at <= now() THEN 'expired' WHEN attempts >= attempts_max THEN 'failed'
                     ELSE 'running' END,
       lease_until = CASE WHEN expires_at <= now() OR attempts >= attempts_max THEN NULL ELSE now() + $5::interval END,
       finished_at = CASE WHEN expires_at <= now() OR attempts >= attempts_max THEN statement_timestamp() END,
       last_error = CASE WHEN attempts >= attempts_max THEN 'the lease of its last worker ran out' ELSE last_error END,
       attempts = least(attempts + 1, attempts_max), token = $3, worker = $4
 WHERE q.ctid = ANY (ARRAY(
   (SELECT lost.place
      FROM unnest((SELECT $1::text[])) AS t (task_type)
     CROSS JOIN LATERAL (
       SELECT q.ctid AS place FROM {tasks}.queue AS q
        WHERE q.status = 'running' AND q.task_type = t.task_type AND q.lease_until <= now()
        ORDER BY q.lease_until
        LIMIT (SELECT $2::integer)
          FOR UPDATE SKIP LOCKED
     ) AS lost)
   UNION ALL
   (SELECT due.place
      FROM unnest((SELECT $1::text[])) AS t (task_type)
     CROSS JOIN LATERAL (
       SELECT q.ctid AS place, q.priority, q.run_at, q.task_id FROM {tasks}.queue AS q
        WHERE q.status IN ('pending', 'retry') AND q.task_type = t.task_type AND q.run_at <= now()
        ORDER BY q.priority DESC, q.run_at, q.task_id
        LIMIT (SELECT $2::integer)
          FOR UPDATE SKIP LOCKED
     ) AS due
     ORDER BY due.priority DESC, due.run_at, due.task_id
     LIMIT (SELECT $2::integer))
   LIMIT (SELECT $2::integer)
 ))
RETURNING timestamptz_send(q.created_at), timestamptz_send(q.run_at), timestamptz_send(q.lease_until), q.task_id,
       q.task_type, q.payload::text, q.raw, q.metadata::text, q.metadata_raw, q.priority, q.attempts, q.attempts_max,
       q.expires_at, q.dedupe_key, q.last_error

-- name: claimed_tasks
-- why: what a claim took whose answer was lost.
-- index: queue_running
SELECT timestamptz_send(created_at), timestamptz_send(run_at), timestamptz_send(lease_until), task_id, task_type,
       payload::text, raw, metadata::text, metadata_raw, priority, attempts, attempts_max, expires_at, dedupe_key,
       last_error
  FROM {tasks}.queue
 WHERE status = 'running' AND task_type = ANY ($1::text[]) AND token = $2

-- name: extend_leases
-- why: a worker says that he is alive; those that are his still.
-- index: queue_pkey
UPDATE {tasks}.queue
   SET lease_until = now() + $3::interval
 WHERE task_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND token = $2 AND lease_until > clock_timestamp()
RETURNING task_id, lease_until

-- name: complete_tasks
-- why: done, once, by whoever holds it. How many they were, in one row: they are looked for only where some are missing.
-- index: queue_pkey
WITH done AS (
  UPDATE {tasks}.queue
     SET status = 'done', finished_at = statement_timestamp(), lease_until = NULL, result = $3::jsonb, result_raw = $4
   WHERE task_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND token = $2 AND lease_until > clock_timestamp()
  RETURNING 1
)
SELECT count(*), statement_timestamp() FROM done

-- name: fail_tasks
-- why: not done: again after a while, or a dead letter, or too late.
-- index: queue_pkey
UPDATE {tasks}.queue
   SET status = CASE WHEN NOT $4::boolean OR attempts >= attempts_max THEN 'failed'
                     WHEN expires_at <= now() THEN 'expired' ELSE 'retry' END,
       finished_at = CASE WHEN NOT $4 OR attempts >= attempts_max OR expires_at <= now() THEN statement_timestamp()
                          END,
       run_at = CASE WHEN $4 AND attempts < attempts_max THEN now() + $5::interval ELSE run_at END,
       lease_until = NULL, last_error = $3
 WHERE task_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND token = $2 AND lease_until > clock_timestamp()
RETURNING task_id, task_type, payload::text AS payload, raw, metadata::text AS metadata, metadata_raw, status,
       priority, attempts, attempts_max, created_at, run_at, expires_at, lease_until, token, worker,
       dedupe_key, last_error, result::text AS result, result_raw, finished_at

-- name: release_tasks
-- why: a worker that stops gives back what he has not begun, as if he had never taken it.
-- index: queue_pkey
UPDATE {tasks}.queue
   SET status = CASE WHEN attempts > 1 THEN 'retry' ELSE 'pending' END, attempts = attempts - 1, lease_until = NULL,
       token = NULL, worker = NULL
 WHERE task_id = ANY (ARRAY(SELECT unnest($1::uuid[]))) AND token = $2 AND lease_until IS NOT NULL

-- name: tasks_by_id
-- why: single tasks, whatever became of them.
-- index: queue_pkey, archive_pkey
SELECT task_id, task_type, payload::text AS payload, raw, metadata::text AS metadata, metadata_raw, status,
       priority, attempts, attempts_max, created_at, run_at, expires_at, lease_until, token, worker,
       dedupe_key, last_error, result::text AS result, result_raw, finished_at
  FROM {tasks}.everything
 WHERE task_id = ANY ($1::uuid[])

-- name: tasks_by_dedupe
-- why: the live tasks that stand for some that were not added.
-- index: queue_dedupe
SELECT q.task_id, q.task_type, q.payload::text AS payload, q.raw, q.metadata::text AS metadata, q.metadata_raw,
       q.status, q.priority, q.attempts, q.attempts_max, q.created_at, q.run_at, q.expires_at, q.lease_until,
       q.token, q.worker, q.dedupe_key, q.last_error, q.result::text AS result, q.result_raw, q.finished_at
  FROM unnest($1::text[], $2::text[]) AS n (task_type, dedupe_key)
  JOIN {tasks}.queue AS q ON q.task_type = n.task_type AND q.dedupe_key = n.dedupe_key
 WHERE q.dedupe_key IS NOT NULL AND q.status IN ('pending', 'retry', 'running')

-- name: cancel_task
-- why: what is not finished is not to be done any more; who does it just now will be refused.
-- index: queue_pkey
UPDATE {tasks}.queue
   SET status = 'cancelled', finished_at = statement_timestamp(), lease_until = NULL
 WHERE task_id = $1 AND status IN ('pending', 'retry', 'running')
RETURNING task_id, task_type, payload::text AS payload, raw, metadata::text AS metadata, metadata_raw, status,
       priority, attempts, attempts_max, created_at, run_at, expires_at, lease_until, token, worker,
       dedupe_key, last_error, result::text AS result, result_raw, finished_at

-- name: replay_task
-- why: what was given up is tried anew, with all its attempts, wherever it is.
-- index: queue_pkey, archive_pkey
WITH gone AS (
  DELETE FROM {tasks}.archive WHERE task_id = $1 AND status IN ('failed', 'cancelled', 'expired')
  RETURNING *
), back AS (
  INSERT INTO {tasks}.queue (task_id, task_type, payload, raw, metadata, metadata_raw, priority, attempts_max,
                             dedupe_key, created_at, run_at, expires_at, last_error)
  SELECT task_id, task_type, payload, raw, metadata, metadata_raw, priority, attempts_max, dedupe_key, created_at,
         now(), CASE WHEN expires_at > now() THEN expires_at END, last_error
    FROM gone
  RETURNING *
), here AS (
  UPDATE {tasks}.queue
     SET status = 'pending', attempts = 0, run_at = now(), finished_at = NULL, token = NULL, worker = NULL,
         expires_at = CASE WHEN expires_at > now() THEN expires_at END
   WHERE task_id = $1 AND status IN ('failed', 'cancelled', 'expired')
  RETURNING *
)
SELECT task_id, task_type, payload::text AS payload, raw, metadata::text AS metadata, metadata_raw, status,
       priority, attempts, attempts_max, created_at, run_at, expires_at, lease_until, token, worker,
       dedupe_key, last_error, result::text AS result, result_raw, finished_at
  FROM (TABLE back UNION ALL TABLE here) AS r

-- name: list_tasks
-- why: a page of tasks by id, which is by the time they were added. `true` is where a filter is put.
-- index: queue_pkey, archive_pkey
SELECT task_id, task_type, payload::text AS payload, raw, metadata::text AS metadata, metadata_raw, status,
       priority, attempts, attempts_max, created_at, run_at, expires_at, lease_until, token, worker,
       dedupe_key, last_error, result::text AS result, result_raw, finished_at
  FROM {tasks}.everything
 WHERE task_id > $1 AND ($3::text IS NULL OR status = $3) AND ($4::text IS NULL OR task_type = $4) AND true
 ORDER BY task_id
 LIMIT $2

-- name: count_tasks
-- why: how many there are in each state.
-- index: none, reads the table
SELECT status, count(*) FROM {tasks}.everything WHERE $1::text IS NULL OR task_type = $1 GROUP BY status

-- name: expire_tasks
-- why: what nobody took in time, also where no worker asks for its type.
-- index: queue_expiring, queue_pkey
UPDATE {tasks}.queue
   SET status = 'expired', finished_at = statement_timestamp()
 WHERE task_id = ANY (ARRAY(
   SELECT task_id FROM {tasks}.queue
    WHERE status IN ('pending', 'retry') AND expires_at IS NOT NULL AND expires_at <= now()
    ORDER BY expires_at
    LIMIT $1
      FOR UPDATE SKIP LOCKED
 ))

-- name: archive_tasks
-- why: what has been finished for a while leaves the queue.
-- index: queue_finished, queue_pkey
WITH gone AS (
  DELETE FROM {tasks}.queue
   WHERE task_id = ANY (ARRAY(
     SELECT task_id FROM {tasks}.queue
      WHERE finished_at IS NOT NULL AND finished_at < statement_timestamp() - $2::interval
      ORDER BY finished_at
      LIMIT $1
        FOR UPDATE SKIP LOCKED
   ))
  RETURNING *
)
INSERT INTO {tasks}.archive TABLE gone

-- name: forget_tasks
-- why: what was finished long ago, where the retention is over before the archive has it.
-- index: queue_finished, queue_pkey
DELETE FROM {tasks}.queue
 WHERE task_id = ANY (ARRAY(
   SELECT task_id FROM {tasks}.queue
    WHERE finished_at IS NOT NULL AND finished_at < now() - $2::interval
    ORDER BY finished_at
    LIMIT $1
      FOR UPDATE SKIP LOCKED
 ))

-- name: forget_archived
-- why: what was finished long ago.
-- index: archive_finished, archive_pkey
DELETE FROM {tasks}.archive
 WHERE task_id = ANY (ARRAY(
   SELECT task_id FROM {tasks}.archive
    WHERE finished_at < now() - $2::interval
    ORDER BY finished_at
    LIMIT $1
      FOR UPDATE SKIP LOCKED
 ))
