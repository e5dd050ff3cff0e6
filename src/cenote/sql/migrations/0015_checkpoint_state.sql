-- phase: pre
-- min_reader: 3
-- What a checkpoint holds is shown whatever the values hold: a record is not taken apart as text, which \u0000 has none of.

CREATE OR REPLACE VIEW {agents}.checkpoint_state AS
WITH RECURSIVE chain AS (
  SELECT c.checkpoint_id AS of_id, c.data_id, c.parent_id, 0 AS above FROM {agents}.checkpoints AS c
  UNION ALL
  SELECT n.of_id, p.data_id, p.parent_id, n.above + 1
    FROM chain AS n JOIN {agents}.checkpoints AS p ON p.checkpoint_id = n.parent_id
), records AS (
  SELECT n.of_id, n.above, d.part, r.place, f.field, f.field[1]::json #>> '{}' AS key
    FROM chain AS n
    JOIN {agents}.checkpoint_parts AS d ON d.data_id = n.data_id
   CROSS JOIN LATERAL json_array_elements(convert_from(d.data, 'UTF8')::json) WITH ORDINALITY AS r (record, place)
   CROSS JOIN LATERAL (
     SELECT array_agg(e.value::text ORDER BY e.n) AS field
       FROM json_array_elements(r.record) WITH ORDINALITY AS e (value, n)
   ) AS f
), newest AS (
  SELECT DISTINCT ON (of_id, key) of_id, key, field FROM records ORDER BY of_id, key, above, part DESC, place DESC
)
SELECT c.agent_id, c.checkpoint_id, c.seq, w.key, w.field[6]::json #>> '{}' AS codec, w.field[7]::json AS value,
       w.field[2]::bigint AS epoch, w.field[3]::bigint AS version
  FROM newest AS w
  JOIN {agents}.checkpoints AS c ON c.checkpoint_id = w.of_id
 WHERE w.field[6] <> 'null'
   AND (w.field[5] = 'null' OR w.field[5]::bigint > extract(epoch FROM c.cut_at) * 1000);
