-- phase: pre
-- min_reader: 3
-- What is to be done.

COMMENT ON SCHEMA {tasks} IS 'What is to be done, by whom it is being done, and what became of it';
