-- agents.registry.

-- name: register
-- why: bare ON CONFLICT: a name that another id has must not raise 23505, for that would fail each batch for ever.
-- index: registry_pkey, registry_name_key
INSERT INTO {agents}.registry (agent_id, name)
SELECT a, n FROM unnest($1::uuid[], $2::text[]) AS u (a, n)
ON CONFLICT DO NOTHING

-- name: agents_page
-- why: `cenote agents`; counts only the keys of the agents on the page.
-- index: registry_pkey, state_pkey
SELECT r.agent_id, r.name, s.keys, s.updated_us
  FROM (SELECT agent_id, name FROM {agents}.registry WHERE agent_id > $1 ORDER BY agent_id LIMIT $2) AS r
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE NOT deleted AND (expires_at IS NULL OR expires_at > now())) AS keys,
              (extract(epoch FROM max(updated_at)) * 1000000)::bigint AS updated_us
         FROM {agents}.state
        WHERE agent_id = r.agent_id) AS s
 ORDER BY r.agent_id
