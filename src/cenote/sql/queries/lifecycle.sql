-- agents.lifecycle and agents.lifecycle_events.

-- name: lifecycle_begin
-- why: the event $3 leads agents into the phase $4, of which $5 takes the lease for $6 ms: those of them that nobody
-- why: works on, or whose worker has died. A higher token than any before shuts out whoever comes back.
-- index: lifecycle_pkey
WITH wanted AS (
  SELECT a, n FROM unnest($1::uuid[], $2::text[]) AS u (a, n) ORDER BY a
), taken AS (
  INSERT INTO {agents}.lifecycle AS l (agent_id, name, phase, token, holder, until, since)
  SELECT a, n, $4::text, 1, $5::text, clock_timestamp() + $6::bigint * interval '1 millisecond', clock_timestamp()
    FROM wanted
  ON CONFLICT (agent_id) DO UPDATE
     SET phase = excluded.phase, token = l.token + 1, holder = excluded.holder, until = excluded.until,
         since = excluded.since
   WHERE l.holder IS NULL OR l.until < clock_timestamp()
  RETURNING agent_id, token
), told AS (
  INSERT INTO {agents}.lifecycle_events (agent_id, event, phase, token, holder)
  SELECT agent_id, $3::text, $4::text, token, $5::text FROM taken
)
SELECT agent_id, token FROM taken

-- name: lifecycle_renew
-- why: whoever works says so; the agents of which he still has the lease.
-- index: lifecycle_pkey
UPDATE {agents}.lifecycle AS l
   SET until = clock_timestamp() + $3::bigint * interval '1 millisecond'
  FROM unnest($1::uuid[], $2::bigint[]) AS u (a, t)
 WHERE l.agent_id = u.a AND l.token = u.t AND l.holder IS NOT NULL
RETURNING l.agent_id

-- name: lifecycle_end
-- why: the work is done or given up, by the event $3 that leads into the phase $4: nothing happens under another token.
-- index: lifecycle_pkey
WITH done AS (
  UPDATE {agents}.lifecycle AS l
     SET phase = $4::text, holder = NULL, until = NULL, since = clock_timestamp()
    FROM unnest($1::uuid[], $2::bigint[]) AS u (a, t)
   WHERE l.agent_id = u.a AND l.token = u.t AND l.holder IS NOT NULL
  RETURNING l.agent_id, l.token
), told AS (
  INSERT INTO {agents}.lifecycle_events (agent_id, event, phase, token, details)
  SELECT agent_id, $3::text, $4::text, token, $5::text::jsonb FROM done
)
SELECT agent_id FROM done

-- name: lifecycle_wake
-- why: an agent that rested is in KV again, and nobody said so: those of which the token is still the one that was seen.
-- index: lifecycle_pkey
WITH woken AS (
  UPDATE {agents}.lifecycle AS l
     SET phase = 'active', since = clock_timestamp()
    FROM unnest($1::uuid[], $2::bigint[]) AS u (a, t)
   WHERE l.agent_id = u.a AND l.token = u.t AND l.holder IS NULL AND l.phase IN ('cold', 'expired')
  RETURNING l.agent_id, l.token
)
INSERT INTO {agents}.lifecycle_events (agent_id, event, phase, token)
SELECT agent_id, 'wake', 'active', token FROM woken

-- name: lifecycle_record
-- why: what was done without a lease.
-- index: lifecycle_pkey
INSERT INTO {agents}.lifecycle_events (agent_id, event, details) VALUES ($1, $2, $3::text::jsonb)

-- name: lifecycle_rows
-- why: where these agents stood when that was written down last.
-- index: lifecycle_pkey
SELECT agent_id, phase, token, holder, coalesce(until >= clock_timestamp(), false) AS alive, since
  FROM {agents}.lifecycle
 WHERE agent_id = ANY ($1::uuid[])

-- name: lifecycle_candidates
-- why: a page of those that may have expired, or have come back.
-- index: registry_pkey, lifecycle_pkey
SELECT r.agent_id, r.name, coalesce(l.phase, 'active') AS phase, coalesce(l.token, 0) AS token
  FROM {agents}.registry AS r
  LEFT JOIN {agents}.lifecycle AS l ON l.agent_id = r.agent_id
 WHERE r.agent_id > $1 AND (l.holder IS NULL OR l.until < clock_timestamp())
 ORDER BY r.agent_id
 LIMIT $2

-- name: lifecycle_events
-- why: what was done with an agent, the newest first.
-- index: lifecycle_events_agent
SELECT number, (extract(epoch FROM at) * 1000000)::bigint AS at_us, agent_id, NULL AS name, event, phase, token, holder,
       details::text AS details, at
  FROM {agents}.lifecycle_events
 WHERE agent_id = $1 AND number < $2
 ORDER BY number DESC
 LIMIT $3

-- name: lifecycle_last
-- why: whether anything has happened, asked again and again by who follows the events.
-- index: lifecycle_events_pkey
SELECT number, (extract(epoch FROM at) * 1000000)::bigint AS at_us
  FROM {agents}.lifecycle_events ORDER BY number DESC LIMIT 1

-- name: lifecycle_fence
-- why: numbers are given before the commit. Whoever holds this lock knows that none below the last one is still to come:
-- why: those who insert hold theirs until they are done. Its wait is short, for others would queue up behind it.
-- index: none
LOCK TABLE {agents}.lifecycle_events IN SHARE MODE

-- name: lifecycle_fence_wait
-- why: see there.
-- index: none
SET LOCAL lock_timeout = 250

-- name: lifecycle_feed
-- why: a page of the events behind $1, under the fence. It begins with the event that was shown last: if that one is gone,
-- why: or stands there with another time, it was removed for its age, or the database has gone back.
-- index: lifecycle_events_pkey, lifecycle_pkey, registry_pkey
SELECT e.number, (extract(epoch FROM e.at) * 1000000)::bigint AS at_us, e.agent_id, coalesce(l.name, r.name) AS name,
       e.event, e.phase, e.token, e.holder, e.details::text AS details, e.at
  FROM {agents}.lifecycle_events AS e
  LEFT JOIN {agents}.lifecycle AS l ON l.agent_id = e.agent_id
  LEFT JOIN {agents}.registry AS r ON r.agent_id = e.agent_id
 WHERE e.number >= $1
 ORDER BY e.number
 LIMIT $2

-- name: lifecycle_forget
-- why: events are kept for a while only; the first ones are the oldest. The last one stays, for who has followed them all
-- why: stands on it.
-- index: lifecycle_events_pkey
DELETE FROM {agents}.lifecycle_events
 WHERE number IN (SELECT number FROM {agents}.lifecycle_events ORDER BY number LIMIT $2)
   AND at < clock_timestamp() - $1::bigint * interval '1 second'
   AND number < (SELECT max(number) FROM {agents}.lifecycle_events)
