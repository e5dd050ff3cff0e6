-- phase: pre
-- min_reader: 3
-- What comparisons of KV with SQL have found, and how far one that was interrupted had come.

-- after: the sequence up to which entries were compared, in the life of the stream that epoch and incarnation name.
-- samples and open are json, for keys may hold what jsonb refuses. open: what the page behind it has found and perhaps mended: [agent, key, kind]. holder: whose run it is.
CREATE TABLE {agents}.repairs (
  repair_id   uuid        PRIMARY KEY,
  holder      uuid        NOT NULL,
  reason      text        NOT NULL,
  dry_run     boolean     NOT NULL,
  agents      text[],
  epoch       bigint      NOT NULL,
  incarnation text        NOT NULL,
  after       bigint      NOT NULL DEFAULT 0,
  scanned     bigint      NOT NULL DEFAULT 0,
  found       jsonb       NOT NULL DEFAULT '{}',
  mended      jsonb       NOT NULL DEFAULT '{}',
  samples     json        NOT NULL DEFAULT '[]',
  open        json        NOT NULL DEFAULT '[]',
  begun_at    timestamptz NOT NULL DEFAULT now(),
  renewed_at  timestamptz NOT NULL DEFAULT now(),
  ended_at    timestamptz
);
COMMENT ON TABLE {agents}.repairs IS 'Comparisons of KV with SQL: what they found and what they mended';
