-- phase: pre
-- min_reader: 3
-- Where agents stand: what was done with them on purpose, by whom, and who is at it now.

-- holder, until: who is at work, for so long; token: counts those who were, so that one who slept too long finds out.
CREATE TABLE {agents}.lifecycle (
  agent_id uuid        PRIMARY KEY,
  name     text        COLLATE "C" NOT NULL,
  phase    text        NOT NULL,
  token    bigint      NOT NULL,
  holder   text,
  until    timestamptz,
  since    timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE {agents}.lifecycle IS 'The phase of an agent as it was written down last; what the tiers hold outranks it';
COMMENT ON COLUMN {agents}.lifecycle.token IS 'Fencing token of whoever works, or worked last';

CREATE TABLE {agents}.lifecycle_events (
  number   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  agent_id uuid        NOT NULL,
  event    text        NOT NULL,
  phase    text,
  token    bigint,
  holder   text,
  details  jsonb,
  at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX lifecycle_events_agent ON {agents}.lifecycle_events (agent_id, number);
COMMENT ON TABLE {agents}.lifecycle_events IS 'What was done with agents on purpose, never the flush in the background';
