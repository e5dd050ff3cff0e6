-- phase: pre
-- min_reader: 3
-- Which transactions of users were committed: an answer to COMMIT can be lost, a row cannot.

COMMENT ON SCHEMA {agents} IS 'What each agent knows: the state that flows here from KV, and who the agents are';
