-- phase: pre
-- min_reader: 1
-- Totals of the counters that JetStream keeps. KV is authoritative; this is what is left when a stream is lost.

CREATE TABLE {agents}.counters (
  name       text        COLLATE "C" PRIMARY KEY,
  value      numeric     NOT NULL,
  version    bigint      NOT NULL,
  epoch      bigint      NOT NULL,
  kv_time    timestamptz NOT NULL,
  updated_at timestamptz NOT NULL
) WITH (fillfactor = 85);
COMMENT ON TABLE {agents}.counters IS 'The newest total of each counter that reached SQL';
COMMENT ON COLUMN {agents}.counters.version IS 'Sequence in the counter stream; only (epoch, version) together are ordered';

-- How far the stream has been brought into SQL stands beside the totals and changes with them, so a database that was
-- put back knows by itself what it lacks. Each flush compares the whole row, so none is late.
CREATE TABLE {agents}.counter_stream (
  one         boolean PRIMARY KEY CHECK (one),
  epoch       bigint  NOT NULL,
  incarnation text    NOT NULL,
  flushed     bigint  NOT NULL
) WITH (fillfactor = 20);
COMMENT ON TABLE {agents}.counter_stream IS 'Which life of the counter stream the totals belong to, and how far they go';
