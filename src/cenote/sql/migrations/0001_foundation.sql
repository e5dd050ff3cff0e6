-- phase: pre
-- min_reader: 1
-- The tables that the flow KV → SQL stands on. Every table is reached by its primary key alone on the hot path:
-- each further index on a column that a write changes takes HOT updates to 0 % and triples the WAL (measured).

CREATE TABLE {agents}.meta (
  name  text PRIMARY KEY,
  value text NOT NULL
);
COMMENT ON TABLE {agents}.meta IS 'Which formats are in use, and how old a reader may be';
INSERT INTO {agents}.meta (name, value) VALUES ('format_min_reader', '1');

CREATE TABLE {agents}.registry (
  agent_id   uuid        PRIMARY KEY,
  name       text        COLLATE "C" NOT NULL UNIQUE,
  agent_type text        NOT NULL DEFAULT 'agent',
  status     text        NOT NULL DEFAULT 'unknown',
  metadata   jsonb       NOT NULL DEFAULT '{}',
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 85);
COMMENT ON TABLE {agents}.registry IS 'Names of agents, one to one with their ids, so that SQL users can join by name';

-- Columns that a rewrite leaves alone stand at the ends: the WAL of a HOT update leaves out the common head and tail.
CREATE TABLE {agents}.state (
  agent_id    uuid        NOT NULL,
  key         text        COLLATE "C" NOT NULL,
  value       jsonb,
  raw         bytea,
  version     bigint      NOT NULL,
  epoch       bigint      NOT NULL,
  kv_time     timestamptz NOT NULL,
  deleted     boolean     NOT NULL,
  quarantined boolean     NOT NULL,
  expires_at  timestamptz,
  updated_at  timestamptz NOT NULL,
  PRIMARY KEY (agent_id, key),
  CONSTRAINT state_key_bytes CHECK (octet_length(key) <= 2000)
) WITH (
  fillfactor = 85,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_insert_scale_factor = 0.05,
  autovacuum_analyze_scale_factor = 0.05
);
COMMENT ON TABLE {agents}.state IS 'One row per agent and key: the newest version that reached SQL, tombstones included';
COMMENT ON COLUMN {agents}.state.key IS 'U+0000, U+001A and lone surrogates are written as U+001A and four hex digits';
COMMENT ON COLUMN {agents}.state.value IS 'The value for querying; NULL in tombstones and quarantined rows';
COMMENT ON COLUMN {agents}.state.raw IS 'The exact bytes, only where jsonb would refuse or change the value';
COMMENT ON COLUMN {agents}.state.version IS 'KV revision of the write; only (epoch, version) together are ordered';
COMMENT ON COLUMN {agents}.state.kv_time IS 'The KV server''s time of the write';

-- The newest epoch is the only row with an incarnation. A flush locks that row FOR SHARE; whoever changes the epoch
-- or the incarnation updates the very row, so a flush that waited for the change sees it (flow rules 3, 4, F-inc).
CREATE TABLE {agents}.epochs (
  epoch          bigint      PRIMARY KEY,
  from_time      timestamptz NOT NULL,
  store_id       uuid        NOT NULL,
  stream_created text        NOT NULL,
  incarnation    text,
  sql_identity   text        NOT NULL,
  reason         text        NOT NULL,
  created_at     timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX epochs_open ON {agents}.epochs ((true)) WHERE incarnation IS NOT NULL;
COMMENT ON TABLE {agents}.epochs IS 'Spans of time in which KV revisions grow; a new one begins when the stream was rewound or recreated';
COMMENT ON COLUMN {agents}.epochs.incarnation IS 'Start of the KV server whose entries may be flushed; NULL once the epoch is over';

-- One row per flusher, rewritten by each of its flushes: room on the page keeps that HOT.
CREATE TABLE {agents}.flushers (
  flusher_id   text        PRIMARY KEY,
  store_id     uuid        NOT NULL,
  epoch        bigint      NOT NULL,
  high_water   bigint      NOT NULL,
  kv_time      timestamptz NOT NULL,
  committed_at timestamptz NOT NULL,
  commits      bigint      NOT NULL,
  rows         bigint      NOT NULL,
  violations   bigint      NOT NULL,
  stats        jsonb
) WITH (fillfactor = 20);
COMMENT ON TABLE {agents}.flushers IS 'Heartbeat of each flusher: how far it has brought KV into SQL';

CREATE TABLE {agents}.dead_letters (
  id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  agent_id    uuid        NOT NULL,
  key         text        COLLATE "C" NOT NULL,
  epoch       bigint      NOT NULL,
  version     bigint      NOT NULL,
  kv_time     timestamptz NOT NULL,
  reason      text        NOT NULL,
  raw         bytea       NOT NULL,
  envelope    text        NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  resolved_at timestamptz
);
CREATE INDEX dead_letters_open ON {agents}.dead_letters (id) WHERE resolved_at IS NULL;
COMMENT ON TABLE {agents}.dead_letters IS 'Writes that SQL refused; their bytes are served from the quarantined row of state';

CREATE TABLE {agents}.blobs (
  id         uuid        PRIMARY KEY,
  bytes      bytea       NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE {agents}.blobs IS 'Values too large for one KV entry; append-only, referred to by entries';

CREATE FUNCTION {agents}.hydrate_agent_state(p_agent_id uuid)
RETURNS TABLE (key text, value jsonb)
LANGUAGE sql STABLE
AS $$
  SELECT s.key, s.value
    FROM {agents}.state AS s
   WHERE s.agent_id = p_agent_id
     AND NOT s.deleted
     AND NOT s.quarantined
     AND (s.expires_at IS NULL OR s.expires_at > now())
$$;
COMMENT ON FUNCTION {agents}.hydrate_agent_state(uuid) IS 'The live keys of one agent, in no order';
