-- phase: pre
-- min_reader: 3
-- What was said. `ts` is the time at which the store took a message and its place in the one order of the log: no two
-- messages have the same, and whoever sees one sees all before it. Senders' clocks decide nothing.

COMMENT ON SCHEMA {messages} IS 'What agents said to each other, by time';

CREATE TABLE {messages}.log (
  ts           timestamptz NOT NULL,
  message_id   uuid        NOT NULL,
  bytes        integer     NOT NULL,
  reply_to     uuid,
  sender       text        COLLATE "C" NOT NULL,
  recipient    text        COLLATE "C" NOT NULL,
  conversation text        COLLATE "C",
  body         jsonb,
  raw          bytea,
  metadata     jsonb,
  metadata_raw bytea,
  CONSTRAINT log_pkey PRIMARY KEY (ts)
) PARTITION BY RANGE (ts);
CREATE INDEX log_conversation ON {messages}.log (conversation, ts) WHERE conversation IS NOT NULL;
CREATE INDEX log_recipient ON {messages}.log (recipient, ts);
CREATE INDEX log_sender ON {messages}.log (sender, ts);
COMMENT ON TABLE {messages}.log IS 'Messages by the time at which the store took them, which is also their order';
COMMENT ON COLUMN {messages}.log.ts IS 'PostgreSQL''s clock, raised by 1 µs where it did not go forward: unique';
COMMENT ON COLUMN {messages}.log.message_id IS 'Unique among what is kept';
COMMENT ON COLUMN {messages}.log.bytes IS 'Size of body and metadata as they were sent';
COMMENT ON COLUMN {messages}.log.sender IS 'In names NUL, U+001A and lone surrogates are U+001A and four hex digits';
COMMENT ON COLUMN {messages}.log.raw IS 'The exact bytes of the body, only where jsonb would refuse or change it';

-- The net: a message finds its place even where nobody could make a partition. Empty, as a rule.
CREATE TABLE {messages}.log_default PARTITION OF {messages}.log DEFAULT;
CREATE UNIQUE INDEX ON {messages}.log_default (message_id);

-- The last `ts` that was given, in µs since 1970. A sequence, for what a snapshot shows of one is never old.
CREATE SEQUENCE {messages}.position AS bigint;

CREATE TABLE {messages}.horizon (
  one     boolean     PRIMARY KEY CHECK (one),
  dropped timestamptz NOT NULL
);
COMMENT ON TABLE {messages}.horizon IS 'The last message that was dropped for its age';

-- Takes messages, in the order given, and says which place each got; what is there already gets none.
-- Whoever sends holds the lock until his commit is over. So places are given in the order of the commits, and in
-- READ COMMITTED the look for duplicates, a statement of its own, sees all that was sent before (p_check: look at all).
CREATE FUNCTION {messages}.send(
  p_lock bigint, p_check boolean, p_ids uuid[], p_bytes integer[], p_replies uuid[], p_senders text[],
  p_recipients text[], p_conversations text[], p_bodies text[], p_raws bytea[], p_metadata text[],
  p_metadata_raws bytea[]
) RETURNS TABLE (sent_id uuid, sent_us bigint) LANGUAGE plpgsql AS $$
DECLARE
  base bigint;
  known uuid[] := '{}';
BEGIN
  PERFORM pg_advisory_xact_lock(p_lock);
  IF p_check THEN
    known := ARRAY(SELECT l.message_id FROM {messages}.log AS l WHERE l.message_id = ANY (p_ids));
  END IF;
  SELECT greatest(s.last_value, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) INTO base
    FROM {messages}.position AS s;
  PERFORM setval('{messages}.position', base + cardinality(p_ids));
  RETURN QUERY
  INSERT INTO {messages}.log AS l (ts, message_id, bytes, reply_to, sender, recipient, conversation, body, raw,
                                   metadata, metadata_raw)
  SELECT timestamptz 'epoch' + (base + u.n) * interval '1 microsecond', u.id, u.bytes, u.reply_to, u.sender,
         u.recipient, u.conversation, u.body::jsonb, u.raw, u.metadata::jsonb, u.metadata_raw
    FROM unnest(p_ids, p_bytes, p_replies, p_senders, p_recipients, p_conversations, p_bodies, p_raws, p_metadata,
                p_metadata_raws) WITH ORDINALITY
           AS u (id, bytes, reply_to, sender, recipient, conversation, body, raw, metadata, metadata_raw, n)
   WHERE u.id <> ALL (known)
  ON CONFLICT DO NOTHING  -- one that an older snapshot does not show, which PostgreSQL answers with 40001
  RETURNING l.message_id, (extract(epoch FROM l.ts) * 1000000)::bigint;
END
$$;

-- The end of the partition that holds a time; it is made where there is none. What lay in the net moves into it.
CREATE FUNCTION {messages}.make_partition(p_at timestamptz, p_seconds bigint, p_search boolean) RETURNS timestamptz
LANGUAGE plpgsql AS $$
DECLARE
  since timestamptz := date_bin(p_seconds * interval '1 second', p_at, timestamptz 'epoch');
  until timestamptz := since + p_seconds * interval '1 second';
  before timestamptz;
  after timestamptz;
  named text;
BEGIN
  SELECT max(p.until) FILTER (WHERE p.since <= p_at), min(p.since) FILTER (WHERE p.since > p_at)
    INTO before, after
    FROM {messages}.partitions AS p;
  IF before > p_at THEN
    RETURN before;
  END IF;
  since := greatest(since, before);  -- the setting may have been another one
  until := least(until, after);
  named := 'log_' || to_char(since AT TIME ZONE 'UTC', 'YYYYMMDD_HH24MISS');
  EXECUTE format('CREATE TABLE {messages}.%I (LIKE {messages}.log)', named);
  LOCK TABLE {messages}.log_default IN ACCESS EXCLUSIVE MODE;
  EXECUTE format('WITH moved AS (DELETE FROM {messages}.log_default WHERE ts >= %L AND ts < %L RETURNING *)
                  INSERT INTO {messages}.%I SELECT * FROM moved', since, until, named);
  EXECUTE format('CREATE UNIQUE INDEX ON {messages}.%I (message_id)', named);
  IF p_search THEN
    EXECUTE format('CREATE INDEX %I ON {messages}.%I USING gin (jsonb_to_tsvector(''simple'', body, ''["string"]''))',
                   named || '_words', named);
  END IF;
  EXECUTE format('ALTER TABLE {messages}.log ATTACH PARTITION {messages}.%I FOR VALUES FROM (%L) TO (%L)',
                 named, since, until);
  RETURN until;
END
$$;

CREATE VIEW {messages}.partitions AS
SELECT c.relname::text AS name,
       substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM \(''([^'']+)''\)')::timestamptz AS since,
       substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([^'']+)''\)')::timestamptz AS until
  FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
 WHERE i.inhparent = '{messages}.log'::regclass AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT';
COMMENT ON VIEW {messages}.partitions IS 'The partitions of the log, the net apart';

-- Drops the partitions that end before a time, and what lies in the net from before it; how many partitions.
CREATE FUNCTION {messages}.drop_partitions(p_before timestamptz) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
  gone record;
  count integer := 0;
  newest timestamptz;  -- of what is dropped
BEGIN
  FOR gone IN SELECT p.name, p.until FROM {messages}.partitions AS p WHERE p.until <= p_before ORDER BY p.since LOOP
    EXECUTE format('SELECT greatest(%L, max(ts)) FROM {messages}.%I', newest, gone.name) INTO newest;
    EXECUTE format('DROP TABLE {messages}.%I', gone.name);
    count := count + 1;
  END LOOP;
  WITH old AS (DELETE FROM {messages}.log_default WHERE ts < p_before RETURNING ts)
  SELECT greatest(newest, max(ts)) INTO newest FROM old;
  IF newest IS NOT NULL THEN
    INSERT INTO {messages}.horizon AS h VALUES (true, newest)
    ON CONFLICT (one) DO UPDATE SET dropped = greatest(h.dropped, excluded.dropped);
  END IF;
  RETURN count;
END
$$;
