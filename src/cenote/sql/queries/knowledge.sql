-- knowledge.facts: what is known. `AND true` is where the condition of a filter goes.

-- name: fact_dimensions
-- why: how many numbers the embeddings of a namespace have.
-- index: spaces_pkey
SELECT dimensions FROM {knowledge}.spaces WHERE namespace = $1

-- name: fact_dimensions_set
-- why: the first embedding of a namespace says it.
-- index: spaces_pkey
INSERT INTO {knowledge}.spaces (namespace, dimensions) VALUES ($1, $2) ON CONFLICT (namespace) DO NOTHING

-- name: facts_add
-- why: new facts, all or none; one that is there already is left alone, so it may be repeated.
-- index: facts_pkey
INSERT INTO {knowledge}.facts (fact_id, line, namespace, text, metadata, raw, embedding, vector_id)
SELECT i, i, n, t, coalesce(m::jsonb, '{}'), r, e, CASE WHEN e IS NOT NULL THEN nextval('{knowledge}.vectors') END
  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::bytea[]) AS f (i, n, t, m, r, e)
 ORDER BY i
    ON CONFLICT (fact_id) DO NOTHING
RETURNING fact_id, (extract(epoch FROM created_at) * 1000000)::bigint AS created_us

-- name: facts_save
-- why: create or replace in place; another text needs another embedding.
-- index: facts_pkey
INSERT INTO {knowledge}.facts AS f (fact_id, line, namespace, text, metadata, raw)
SELECT $1, $1, $2, $3, coalesce($4::text::jsonb, '{}'), $5
    ON CONFLICT (fact_id) DO UPDATE
   SET namespace = excluded.namespace, text = excluded.text, metadata = excluded.metadata, raw = excluded.raw,
       embedding = CASE WHEN (f.text, f.namespace) = (excluded.text, excluded.namespace) THEN f.embedding END,
       vector_id = CASE WHEN (f.text, f.namespace) = (excluded.text, excluded.namespace) THEN f.vector_id END,
       embed_at = now(), failures = 0, version = f.version + 1

-- name: facts_update
-- why: replace what was read, unless somebody has since; another text needs another embedding.
-- index: facts_pkey
UPDATE {knowledge}.facts
   SET namespace = $2, text = $3, metadata = coalesce($4::text::jsonb, '{}'), raw = $5,
       embedding = CASE WHEN (text, namespace) = ($3, $2) THEN embedding END,
       vector_id = CASE WHEN (text, namespace) = ($3, $2) THEN vector_id END,
       embed_at = now(), failures = 0, version = version + 1
 WHERE fact_id = $1 AND version = $6
RETURNING fact_id

-- name: facts_supersede
-- why: the old one ends and the new one begins in one statement; repeated, it changes nothing.
-- index: facts_pkey
WITH old AS (
  UPDATE {knowledge}.facts SET superseded_by = $1
   WHERE fact_id = $7 AND (superseded_by IS NULL OR superseded_by = $1)
  RETURNING line
)
INSERT INTO {knowledge}.facts (fact_id, line, namespace, text, metadata, raw, embedding, vector_id)
SELECT $1, old.line, $2, $3, coalesce($4::text::jsonb, '{}'), $5, $6::bytea, CASE WHEN $6::bytea IS NOT NULL THEN nextval('{knowledge}.vectors') END
  FROM old
    ON CONFLICT (fact_id) DO NOTHING

-- name: facts_by_id
-- why: facts, current or not.
-- index: facts_pkey
SELECT fact_id, namespace, text, metadata::text AS metadata, raw, vector_id IS NOT NULL AS embedded, version,
       (extract(epoch FROM created_at) * 1000000)::bigint AS created_us, superseded_by
  FROM {knowledge}.facts
 WHERE fact_id = ANY ($1::uuid[])

-- name: facts_history
-- why: everything that superseded each other, the oldest first.
-- index: facts_line
SELECT fact_id, namespace, text, metadata::text AS metadata, raw, vector_id IS NOT NULL AS embedded, version,
       (extract(epoch FROM created_at) * 1000000)::bigint AS created_us, superseded_by
  FROM {knowledge}.facts
 WHERE line = (SELECT line FROM {knowledge}.facts WHERE fact_id = $1)
 ORDER BY created_at, fact_id

-- name: facts_page
-- why: the current facts of a namespace.
-- index: facts_current
SELECT fact_id, namespace, text, metadata::text AS metadata, raw, vector_id IS NOT NULL AS embedded, version,
       (extract(epoch FROM created_at) * 1000000)::bigint AS created_us, superseded_by
  FROM {knowledge}.facts
 WHERE superseded_by IS NULL AND namespace = $1 AND fact_id > $2 AND true
 ORDER BY fact_id
 LIMIT $3

-- name: facts_by_words
-- why: full-text search among the current facts.
-- index: facts_words, facts_current
SELECT fact_id, ts_rank_cd(words, websearch_to_tsquery('simple', $2))::float8 AS score
  FROM {knowledge}.facts
 WHERE superseded_by IS NULL AND namespace = $1 AND words @@ websearch_to_tsquery('simple', $2) AND true
 ORDER BY score DESC, fact_id
 LIMIT $3

-- name: fact_vectors
-- why: which embeddings are to be compared; their numbers are mostly in memory already.
-- index: facts_vectors
SELECT coalesce(array_agg(vector_id), '{}')
  FROM {knowledge}.facts
 WHERE superseded_by IS NULL AND namespace = $1 AND vector_id IS NOT NULL AND true

-- name: fact_numbers
-- why: the numbers of embeddings that are not in memory yet.
-- index: facts_vectors
SELECT vector_id, fact_id, embedding
  FROM {knowledge}.facts
 WHERE superseded_by IS NULL AND namespace = $1 AND vector_id = ANY ($2::bigint[])

-- name: facts_claim
-- why: some facts to embed, for as long as it may take; nobody waits for another's.
-- index: facts_waiting
UPDATE {knowledge}.facts AS f SET embed_at = now() + make_interval(secs => $2)
  FROM (SELECT fact_id FROM {knowledge}.facts
         WHERE embedding IS NULL AND superseded_by IS NULL AND embed_at <= now()
         ORDER BY embed_at LIMIT $1 FOR UPDATE SKIP LOCKED) AS due
 WHERE f.fact_id = due.fact_id
RETURNING f.fact_id, f.namespace, f.text, f.version

-- name: facts_embedded
-- why: what an embedder said, unless the text is another by now.
-- index: facts_pkey
UPDATE {knowledge}.facts AS f
   SET embedding = e.embedding, vector_id = nextval('{knowledge}.vectors'), failures = 0
  FROM unnest($1::uuid[], $2::bigint[], $3::bytea[]) AS e (fact_id, version, embedding)
 WHERE f.fact_id = e.fact_id AND f.version = e.version AND f.embedding IS NULL

-- name: facts_not_embedded
-- why: an embedder failed: again later, and each time after a longer wait.
-- index: facts_pkey
UPDATE {knowledge}.facts
   SET failures = failures + 1, embed_at = now() + make_interval(secs => least(300, 0.2 * 2 ^ least(failures, 20)))
 WHERE fact_id = ANY ($1::uuid[]) AND embedding IS NULL

-- name: facts_waiting
-- why: whether any fact has no embedding yet, and in how many seconds one may be tried.
-- index: facts_waiting
SELECT extract(epoch FROM embed_at - now())::float8
  FROM {knowledge}.facts
 WHERE embedding IS NULL AND superseded_by IS NULL
 ORDER BY embed_at
 LIMIT 1

-- name: facts_delete
-- why: one fact.
-- index: facts_pkey
DELETE FROM {knowledge}.facts WHERE fact_id = $1

-- name: facts_forget
-- why: the facts of a namespace that fit a filter, superseded ones as well.
-- index: facts_current
DELETE FROM {knowledge}.facts WHERE namespace = $1 AND true
