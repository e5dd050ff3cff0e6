-- phase: pre
-- min_reader: 3
-- The conflict log for those who read SQL. Its records are rows of one reserved agent in the state, which the
-- flush brings like all others; whatever stands in such a row, the view shows it, and no row can make it fail.

CREATE VIEW {agents}.conflicts AS
SELECT CASE WHEN s.key ~ '^[0-9]+[.]' AND position('.' IN s.key) = 16
            THEN timestamptz 'epoch' + left(s.key, 15)::bigint * interval '1 millisecond'
            ELSE s.kv_time END AS at,
       s.value->>'agent' AS agent,
       s.value->>'key' AS key,
       s.value->>'strategy' AS strategy,
       s.value->>'outcome' AS outcome,
       coalesce(s.value->>'writer', regexp_replace(substr(s.key, 17), '[.][^.]*$', '')) AS writer,
       substr(s.key, 17) AS operation,
       s.value->'current' AS current,
       s.value->'incoming' AS incoming,
       CASE s.value->>'outcome' WHEN 'current' THEN s.value->'current'
                                WHEN 'incoming' THEN s.value->'incoming'
                                ELSE s.value->'result' END AS result,
       CASE WHEN jsonb_typeof(s.value->'discarded') = 'array'
            THEN ARRAY(SELECT jsonb_array_elements_text(s.value->'discarded')) END AS discarded,
       CASE WHEN jsonb_typeof(s.value->'versions') = 'array'
            THEN ARRAY(SELECT jsonb_array_elements_text(s.value->'versions')) END AS versions,
       CASE WHEN s.value->'outcome' IS NULL THEN 'not to be shown in SQL: cenote conflicts shows it'
            ELSE s.value->>'reason' END AS reason
  FROM {agents}.state AS s
 WHERE s.agent_id = 'c0a15e70-c0f1-4c75-9a1e-5c0ff11c7106'
   AND NOT s.deleted
   AND (s.expires_at IS NULL OR s.expires_at > now());
COMMENT ON VIEW {agents}.conflicts IS 'What happened when two writes met under one key, and what was discarded';
