-- phase: pre
-- min_reader: 3
-- What an agent is, beside its name.

COMMENT ON TABLE {agents}.registry IS 'Who the agents are: names one to one with ids, and what each says of itself';
