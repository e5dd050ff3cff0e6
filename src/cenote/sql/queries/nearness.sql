-- knowledge.near_<n>: where embeddings are near each other. Three more placeholders, each filled with what the server
-- itself said: {near} is such a table, {vector} the schema of pgvector, {dimensions} a number.

-- name: near_server
-- why: whether the server has pgvector, and whether this role may bring it into the database.
-- index: none
SELECT e.extversion AS installed, a.default_version AS available, quote_ident(n.nspname) AS schema,
       coalesce((SELECT bool_or(v.trusted) FROM pg_available_extension_versions AS v
                  WHERE v.name = 'vector' AND v.version = a.default_version), false)
         AND has_database_privilege(current_database(), 'CREATE')
         OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS may_create
  FROM (VALUES ('vector')) AS one (name)
  LEFT JOIN pg_available_extensions AS a ON a.name = one.name
  LEFT JOIN pg_extension AS e ON e.extname = one.name
  LEFT JOIN pg_namespace AS n ON n.oid = e.extnamespace

-- name: near_extension
-- why: the first large namespace of a database brings it, where the role may.
-- index: none
CREATE EXTENSION IF NOT EXISTS vector

-- name: near_space
-- why: whether searches in a namespace may use its table.
-- index: spaces_pkey
SELECT s.near, s.dimensions, quote_ident(n.nspname) AS schema
  FROM {knowledge}.spaces AS s
  JOIN pg_extension AS e ON e.extname = 'vector'
  JOIN pg_namespace AS n ON n.oid = e.extnamespace
 WHERE s.namespace = $1 AND s.near_ready

-- name: near_spaces
-- why: the namespaces that have a table, and those that are to have one; counted no further than needed.
-- index: spaces_pkey, facts_vectors
SELECT s.namespace, s.dimensions, s.near, s.near_ready AS ready,
       EXISTS (SELECT FROM pg_attribute AS a
                WHERE a.attrelid = to_regclass('{knowledge}.near_' || s.near) AND a.attname = 'near'
                  AND NOT a.attisdropped) AS whole,
       coalesce((SELECT i.indisvalid FROM pg_index AS i
                  WHERE i.indexrelid = to_regclass('{knowledge}.near_' || s.near || '_hnsw')), false) AS built
  FROM {knowledge}.spaces AS s
 WHERE s.near IS NOT NULL
    OR s.dimensions <= $2
   AND (SELECT count(*) FROM (SELECT FROM {knowledge}.facts AS f
                               WHERE f.superseded_by IS NULL AND f.namespace = s.namespace AND f.vector_id IS NOT NULL
                               LIMIT $1) AS f) >= $1
 ORDER BY s.namespace

-- name: near_tail_valid
-- why: whether the index on what is not in the tables yet is there, and whole.
-- index: none
SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('{knowledge}.facts_tail')

-- name: near_tail_create
-- why: beside the writers. Only stores with a large namespace pay for it.
-- index: facts_tail
CREATE INDEX CONCURRENTLY IF NOT EXISTS facts_tail ON {knowledge}.facts (namespace, vector_id)
 WHERE superseded_by IS NULL AND vector_id IS NOT NULL AND near_id IS DISTINCT FROM vector_id

-- name: near_tail_drop
-- why: its building was cut off.
-- index: facts_tail
DROP INDEX CONCURRENTLY IF EXISTS {knowledge}.facts_tail

-- name: near_forget
-- why: before a namespace gets a table, nothing may say that it is in one: in portions, until there are none.
-- index: facts_vectors
UPDATE {knowledge}.facts SET near_id = NULL
 WHERE fact_id IN (SELECT fact_id FROM {knowledge}.facts
                    WHERE superseded_by IS NULL AND namespace = $1 AND near_id IS NOT NULL
                    ORDER BY fact_id LIMIT $2)

-- name: near_number
-- why: a table is never made anew under its number.
-- index: none
SELECT nextval('{knowledge}.nears')::int

-- name: near_create
-- why: halfvec: half the size. Which of its candidates are nearest is decided by the exact numbers.
-- index: none
CREATE TABLE {near} (vector_id bigint PRIMARY KEY, fact_id uuid NOT NULL, near {vector}.halfvec({dimensions}) NOT NULL)

-- name: near_begin
-- why: from here on it is filled.
-- index: spaces_pkey
UPDATE {knowledge}.spaces SET near = $2, near_ready = false WHERE namespace = $1 AND near IS NULL

-- name: near_end
-- why: somebody has dropped the table, or the extension.
-- index: spaces_pkey
UPDATE {knowledge}.spaces SET near = NULL, near_ready = false WHERE namespace = $1 AND near = $2

-- name: near_drop
-- why: what is left of it.
-- index: none
DROP TABLE IF EXISTS {near}

-- name: near_due
-- why: embeddings that are not in the table yet.
-- index: facts_tail
SELECT vector_id, fact_id, embedding
  FROM {knowledge}.facts
 WHERE superseded_by IS NULL AND vector_id IS NOT NULL AND near_id IS DISTINCT FROM vector_id AND namespace = $1
   AND vector_id > $3
 ORDER BY vector_id
 LIMIT $2

-- name: near_fill
-- why: an embedding is in the table and out of the tail at once. A fact that got another one meanwhile stays in the tail.
-- index: facts_pkey
WITH due AS MATERIALIZED (SELECT i, f, t FROM unnest($2::bigint[], $3::uuid[], $4::text[]) AS u (i, f, t)),
put AS (
  INSERT INTO {near} (vector_id, fact_id, near) SELECT i, f, t::{vector}.halfvec({dimensions}) FROM due
      ON CONFLICT (vector_id) DO NOTHING
)
UPDATE {knowledge}.facts AS f SET near_id = f.vector_id
  FROM due
 WHERE f.fact_id = due.f AND f.vector_id = due.i AND f.superseded_by IS NULL AND f.namespace = $1

-- name: near_index
-- why: beside the searches. What is cut off leaves an index that is not valid.
-- index: none
CREATE INDEX CONCURRENTLY IF NOT EXISTS {index} ON {near}
 USING hnsw (near {vector}.halfvec_ip_ops)

-- name: near_index_drop
-- why: its building was cut off.
-- index: none
DROP INDEX CONCURRENTLY IF EXISTS {knowledge}.{index}

-- name: near_analyze
-- why: before it is used.
-- index: none
ANALYZE {near}

-- name: near_ready
-- why: its index is whole, or is not any more.
-- index: spaces_pkey
UPDATE {knowledge}.spaces SET near_ready = $3 WHERE namespace = $1 AND near = $2

-- name: near_sweep
-- why: embeddings of facts that are gone, superseded or embedded anew; searches pass them by.
-- index: facts_pkey
DELETE FROM {near} AS n
 WHERE NOT EXISTS (SELECT FROM {knowledge}.facts AS f
                    WHERE f.fact_id = n.fact_id AND f.vector_id = n.vector_id AND f.superseded_by IS NULL
                      AND f.namespace = $1)

-- name: near_search_settings
-- why: further and further from the query until there are enough that pass the filter, but not so far that all
--   embeddings had been compared by then; no other order of things.
-- index: none
SET LOCAL hnsw.iterative_scan = strict_order;
SET LOCAL hnsw.ef_search = 400;
SET LOCAL hnsw.max_scan_tuples = 4000;
SET LOCAL enable_sort = off

-- name: near_search
-- why: candidates; the facts themselves say which of them count.
-- index: facts_pkey
SELECT f.vector_id, f.fact_id, f.embedding
  FROM {near} AS n
  JOIN {knowledge}.facts AS f ON f.fact_id = n.fact_id AND f.vector_id = n.vector_id
 WHERE f.superseded_by IS NULL AND f.namespace = $1 AND true
 ORDER BY n.near OPERATOR({vector}.<#>) $2::text::{vector}.halfvec({dimensions})
 LIMIT $3

-- name: near_tail
-- why: what is not in the table yet, and passes the filter.
-- index: facts_tail
SELECT coalesce(array_agg(vector_id), '{}')
  FROM {knowledge}.facts
 WHERE superseded_by IS NULL AND vector_id IS NOT NULL AND near_id IS DISTINCT FROM vector_id AND namespace = $1
   AND true

-- name: near_counts
-- why: how many embeddings a namespace has, and how many of them are in its table.
-- index: spaces_pkey, facts_vectors
SELECT s.dimensions, s.near, s.near_ready AS ready, count(f.vector_id) AS facts,
       count(*) FILTER (WHERE f.near_id = f.vector_id) AS indexed
  FROM {knowledge}.spaces AS s
  LEFT JOIN {knowledge}.facts AS f
    ON f.superseded_by IS NULL AND f.namespace = s.namespace AND f.vector_id IS NOT NULL
 WHERE s.namespace = $1
 GROUP BY s.namespace
