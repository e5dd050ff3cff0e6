-- phase: pre
-- min_reader: 3
-- Large namespaces get an index on their embeddings, where the server has pgvector.

-- The tables near_<n> and their indexes are made later, by the process that flushes, for they need the extension
-- `vector`; so does the index facts_tail, which nobody else needs. What is in them only narrows down where to look.
ALTER TABLE {knowledge}.facts ADD COLUMN near_id bigint;
ALTER TABLE {knowledge}.spaces
  ADD COLUMN near       int,
  ADD COLUMN near_ready boolean NOT NULL DEFAULT false;
CREATE SEQUENCE {knowledge}.nears AS int;
COMMENT ON COLUMN {knowledge}.facts.near_id IS 'The vector_id under which the table near_<n> of its namespace has it';
COMMENT ON COLUMN {knowledge}.spaces.near IS 'The number of its table near_<n>; NULL: there is none';
COMMENT ON COLUMN {knowledge}.spaces.near_ready IS 'Whether searches use it';
