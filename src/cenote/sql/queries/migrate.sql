-- agents.migrations: what the database has.

-- name: schemas_missing
-- why: see migrate.py.
-- index: none
SELECT s FROM unnest($1::text[]) AS s WHERE NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = s::name)

-- name: relation_exists
-- why: a database that was never migrated has no table to ask.
-- index: none
SELECT to_regclass($1) IS NOT NULL

-- name: create_migrations
-- why: the first thing a migration needs.
-- index: none
CREATE TABLE IF NOT EXISTS {agents}.migrations (
  number     integer     PRIMARY KEY,
  name       text        NOT NULL,
  phase      text        NOT NULL,
  sha256     text        NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now(),
  applied_by text        NOT NULL DEFAULT current_user
)

-- name: applied_migrations
-- why: compared with the files.
-- index: none
SELECT number, sha256 FROM {agents}.migrations ORDER BY number

-- name: migration_applied
-- why: looked at again under the lock.
-- index: migrations_pkey
SELECT EXISTS (SELECT FROM {agents}.migrations WHERE number = $1)

-- name: record_migration
-- why: in the transaction of the migration itself.
-- index: migrations_pkey
INSERT INTO {agents}.migrations (number, name, phase, sha256) VALUES ($1, $2, $3, $4)

-- name: schema_min_reader
-- why: may this code, which knows fewer migrations than the database has, use the schema?
-- index: meta_pkey
SELECT value FROM {agents}.meta WHERE name = 'schema_min_reader'

-- name: raise_min_reader
-- why: never lowered; answers only when it was raised.
-- index: meta_pkey
INSERT INTO {agents}.meta AS m (name, value) VALUES ('schema_min_reader', $1)
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE m.value::int < excluded.value::int
RETURNING true

-- name: unbind_flushes
-- why: whoever flushes finds no guard, and begins anew if it knows the schema.
-- index: epochs_pkey
UPDATE {agents}.epochs SET incarnation = '' WHERE epoch = (SELECT max(epoch) FROM {agents}.epochs)

-- name: format_min_reader
-- why: what writers may use: every process of the store reads up to this format (flow rule 22).
-- index: meta_pkey
SELECT value::int FROM {agents}.meta WHERE name = 'format_min_reader'

-- name: raise_format
-- why: never lowered; entries of this format may be anywhere from now on.
-- index: meta_pkey
UPDATE {agents}.meta SET value = $1::int::text WHERE name = 'format_min_reader' AND value::int < $1
