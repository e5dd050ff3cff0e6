-- phase: pre
-- min_reader: 3
-- What was said.

COMMENT ON SCHEMA {messages} IS 'What agents said to each other, by time';
