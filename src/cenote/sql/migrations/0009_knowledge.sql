-- phase: pre
-- min_reader: 3
-- What is known.

COMMENT ON SCHEMA {knowledge} IS 'Facts with their texts and embeddings';
