-- agents.registry.

-- name: register
-- why: bare ON CONFLICT: a name that another id has must not raise 23505, for that would fail each batch for ever.
-- index: registry_pkey, registry_name_key
INSERT INTO {agents}.registry (agent_id, name)
SELECT a, n FROM unnest($1::uuid[], $2::text[]) AS u (a, n)
ON CONFLICT DO NOTHING

-- name: project_profiles
-- why: the columns of the registry from the entries $2 of the agent $1, which they repeat. The fence: whoever read an older row and waited for a faster one finds it newer by now, and leaves it alone. It reads
-- why: what is committed, never what a flusher has in its hands, so it can repeat nothing that SQL does not hold.
-- index: state_pkey, registry_name_key
UPDATE {agents}.registry AS r
   SET agent_type = coalesce(s.value->>'type', 'agent'), status = coalesce(s.value->>'status', 'unknown'),
       metadata = CASE WHEN jsonb_typeof(s.value->'metadata') = 'object' THEN s.value->'metadata' ELSE '{}' END,
       raw = s.raw, epoch = s.epoch, version = s.version, deleted = s.deleted, updated_at = s.kv_time
  FROM {agents}.state AS s
 WHERE s.agent_id = $1 AND s.key = ANY ($2::text[]) AND r.name = s.key
   AND (coalesce(r.epoch, 0), coalesce(r.version, 0)) < (s.epoch, s.version)

-- name: project_heartbeats
-- why: many heartbeats become one update, which changes no indexed column. $2: these, NULL: all.
-- index: state_pkey, registry_name_key
UPDATE {agents}.registry AS r
   SET seen_at = s.kv_time
  FROM {agents}.state AS s
 WHERE s.agent_id = $1 AND ($2::text[] IS NULL OR s.key = ANY ($2)) AND NOT s.deleted AND r.name = s.key
   AND (r.seen_at IS NULL OR r.seen_at < s.kv_time)

-- name: stale_profiles
-- why: what a process left behind that was killed between a flush and the registry, or that the registry refused; once
-- why: in a flusher's tenure, and after each failure.
-- index: state_pkey, registry_name_key
SELECT s.key
  FROM {agents}.state AS s
  LEFT JOIN {agents}.registry AS r ON r.name = s.key
 WHERE s.agent_id = $1 AND (r.epoch, r.version) IS DISTINCT FROM (s.epoch, s.version)
 ORDER BY s.key

-- name: registered
-- why: `store.agents`: an agent by its id.
-- index: registry_pkey
SELECT name, agent_type, status, metadata::text AS metadata, raw, epoch, version, deleted,
       (extract(epoch FROM updated_at) * 1000000)::bigint AS updated_us,
       (extract(epoch FROM seen_at) * 1000000)::bigint AS seen_us
  FROM {agents}.registry
 WHERE agent_id = $1

-- name: find_agents
-- why: `store.agents.list` and `search`: a page by name. A filter's condition takes the place of `true`.
-- index: registry_name_key, registry_metadata
SELECT name, agent_type, status, metadata::text AS metadata, raw, epoch, version, deleted,
       (extract(epoch FROM updated_at) * 1000000)::bigint AS updated_us,
       (extract(epoch FROM seen_at) * 1000000)::bigint AS seen_us
  FROM {agents}.registry
 WHERE name > $1 AND NOT deleted AND ($3::text IS NULL OR agent_type = $3) AND ($4::text IS NULL OR status = $4)
   AND true
 ORDER BY name
 LIMIT $2

-- name: agent_names
-- why: what these are called.
-- index: registry_pkey
SELECT agent_id, name FROM {agents}.registry WHERE agent_id = ANY ($1::uuid[])

-- name: agents_named
-- why: a page by name, for those who look; counts only the keys of the agents on the page. $5: only those of which this
-- why: phase was noted last; of most nothing was ever noted, and they count as active.
-- index: registry_name_key, state_pkey, lifecycle_pkey
SELECT r.agent_id, r.name, s.keys, s.updated_us, r.agent_type, r.status, r.deleted,
       (extract(epoch FROM r.seen_at) * 1000000)::bigint AS seen_us, l.phase
  FROM (SELECT * FROM {agents}.registry AS g
         WHERE name > $2 COLLATE "C" AND name >= $1 COLLATE "C" AND name < $3 COLLATE "C" AND NOT deleted
           AND ($5::text IS NULL
                OR $5 = coalesce((SELECT n.phase FROM {agents}.lifecycle AS n WHERE n.agent_id = g.agent_id), 'active'))
         ORDER BY name LIMIT $4) AS r
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE NOT deleted AND (expires_at IS NULL OR expires_at > now())) AS keys,
              (extract(epoch FROM max(updated_at)) * 1000000)::bigint AS updated_us
         FROM {agents}.state WHERE agent_id = r.agent_id
       ) AS s
  LEFT JOIN {agents}.lifecycle AS l ON l.agent_id = r.agent_id
 ORDER BY r.name

-- name: agents_of
-- why: the same of agents that somebody has chosen, in no order.
-- index: registry_pkey, state_pkey, lifecycle_pkey
SELECT r.agent_id, r.name, s.keys, s.updated_us, r.agent_type, r.status, r.deleted,
       (extract(epoch FROM r.seen_at) * 1000000)::bigint AS seen_us, l.phase
  FROM {agents}.registry AS r
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE NOT deleted AND (expires_at IS NULL OR expires_at > now())) AS keys,
              (extract(epoch FROM max(updated_at)) * 1000000)::bigint AS updated_us
         FROM {agents}.state WHERE agent_id = r.agent_id
       ) AS s
  LEFT JOIN {agents}.lifecycle AS l ON l.agent_id = r.agent_id
 WHERE r.agent_id = ANY ($1::uuid[]) AND NOT r.deleted

-- name: last_written
-- why: who was flushed last, the last first, below the place ($2, $3). Nothing sorts the state by time: the log of the
-- why: commits does, of which the newest $1 are read.
-- index: flush_head_pkey, flush_log_pkey
SELECT a, max(number) AS number
  FROM (SELECT number, unnest(agent_ids) AS a
          FROM {agents}.flush_log
         WHERE number > (SELECT h.number FROM {agents}.flush_head AS h WHERE h.one) - $1::bigint) AS u
 GROUP BY a
HAVING (max(number), a) < ($2::bigint, $3::uuid)
 ORDER BY number DESC, a DESC
 LIMIT $4

-- name: agents_page
-- why: `cenote agents`; counts only the keys of the agents on the page.
-- index: registry_pkey, state_pkey
SELECT r.agent_id, r.name, s.keys, s.updated_us, r.agent_type, r.status, r.deleted,
       (extract(epoch FROM r.seen_at) * 1000000)::bigint AS seen_us, l.phase
  FROM (SELECT * FROM {agents}.registry WHERE agent_id > $1 ORDER BY agent_id LIMIT $2) AS r
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE NOT deleted AND (expires_at IS NULL OR expires_at > now())) AS keys,
              (extract(epoch FROM max(updated_at)) * 1000000)::bigint AS updated_us
         FROM {agents}.state
        WHERE agent_id = r.agent_id) AS s
  LEFT JOIN {agents}.lifecycle AS l ON l.agent_id = r.agent_id
 ORDER BY r.agent_id
