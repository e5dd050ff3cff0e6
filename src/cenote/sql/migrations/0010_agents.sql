-- phase: pre
-- min_reader: 3
-- What an agent is, beside its name; and where content is looked for.

-- What an agent says of itself is an entry of the state like any other; these columns repeat it for those who query
-- and index it, under the version of that entry. No heartbeat changes what the index covers, so those stay HOT.
ALTER TABLE {agents}.registry
  ADD COLUMN raw     bytea,
  ADD COLUMN epoch   bigint,
  ADD COLUMN version bigint,
  ADD COLUMN deleted boolean NOT NULL DEFAULT false,
  ADD COLUMN seen_at timestamptz;
ALTER TABLE {agents}.registry SET (fillfactor = 50);  -- all may give signs of life at once: room on their pages
CREATE INDEX registry_metadata ON {agents}.registry USING gin (metadata jsonb_path_ops);
COMMENT ON TABLE {agents}.registry IS 'Who the agents are: names one to one with ids, and what each says of itself';
COMMENT ON COLUMN {agents}.registry.version IS 'With epoch: of the entry that the columns repeat; NULL: it only wrote state';
COMMENT ON COLUMN {agents}.registry.raw IS 'The exact bytes of that entry, only where jsonb would change it';
COMMENT ON COLUMN {agents}.registry.seen_at IS 'The last sign of life, a few seconds late';

-- sql.search_index = "projection": the values of the state once more, so that their index costs no flush anything. What
-- it says is never believed: it tells in which rows of the state to look. Without a head there is no projection.
CREATE TABLE {agents}.search (
  agent_id   uuid        NOT NULL,
  key        text        COLLATE "C" NOT NULL,
  value      jsonb       NOT NULL,
  expires_at timestamptz,
  PRIMARY KEY (agent_id, key)
);
CREATE INDEX search_value ON {agents}.search USING gin (value jsonb_path_ops);
CREATE INDEX search_expiring ON {agents}.search (expires_at) WHERE expires_at IS NOT NULL;
COMMENT ON TABLE {agents}.search IS 'Where a value may be found, for sql.search_index = projection';

CREATE TABLE {agents}.search_head (
  one      boolean PRIMARY KEY CHECK (one),
  number   bigint  NOT NULL,
  agent_id uuid,
  key      text    COLLATE "C"
) WITH (fillfactor = 20);
COMMENT ON TABLE {agents}.search_head IS 'Up to which flush the projection has come; agent_id and key: how far it is filled, NULL once it is';
