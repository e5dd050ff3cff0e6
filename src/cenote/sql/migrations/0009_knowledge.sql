-- phase: pre
-- min_reader: 3
-- What is known.

COMMENT ON SCHEMA {knowledge} IS 'Facts with their texts and embeddings';

-- An embedding never changes under its vector_id: whoever has it in memory needs to ask for the numbers alone.
CREATE SEQUENCE {knowledge}.vectors;

-- A fact that is superseded stays, for the history of its line; only current ones (superseded_by IS NULL) are found.
-- 'simple' words: nobody has said in which language facts are, and a wrong stemmer loses names and code.
CREATE TABLE {knowledge}.facts (
  fact_id       uuid        PRIMARY KEY,
  line          uuid        NOT NULL,
  namespace     text        COLLATE "C" NOT NULL,
  text          text        NOT NULL,
  metadata      jsonb       NOT NULL,
  raw           bytea,
  embedding     bytea,
  vector_id     bigint,
  version       bigint      NOT NULL DEFAULT 1,
  created_at    timestamptz NOT NULL DEFAULT now(),
  superseded_by uuid,
  embed_at      timestamptz NOT NULL DEFAULT now(),
  failures      int         NOT NULL DEFAULT 0,
  words         tsvector    GENERATED ALWAYS AS (to_tsvector('simple', text)) STORED
);
CREATE INDEX facts_line ON {knowledge}.facts (line, fact_id);
CREATE INDEX facts_current ON {knowledge}.facts (namespace, fact_id) WHERE superseded_by IS NULL;
CREATE INDEX facts_vectors ON {knowledge}.facts (namespace, vector_id) WHERE superseded_by IS NULL;
CREATE INDEX facts_waiting ON {knowledge}.facts (embed_at) WHERE embedding IS NULL AND superseded_by IS NULL;
CREATE INDEX facts_words ON {knowledge}.facts USING gin (words);
COMMENT ON TABLE {knowledge}.facts IS 'What is known; current facts without an embedding are the queue of those to come';
COMMENT ON COLUMN {knowledge}.facts.line IS 'The first fact of those that superseded each other';
COMMENT ON COLUMN {knowledge}.facts.raw IS 'The exact bytes of metadata, only where jsonb would change them';
COMMENT ON COLUMN {knowledge}.facts.embedding IS 'float32, little-endian, of length 1: a dot product is the cosine';
COMMENT ON COLUMN {knowledge}.facts.embed_at IS 'When it may be embedded: later while somebody does, or after a failure';

CREATE TABLE {knowledge}.spaces (
  namespace  text COLLATE "C" PRIMARY KEY,
  dimensions int  NOT NULL
);
COMMENT ON TABLE {knowledge}.spaces IS 'How many numbers the embeddings of a namespace have; the first one says';
