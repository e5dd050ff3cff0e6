-- messages.log, by its places in time. A page has at most $2 messages, and ends where their bytes exceed $3.

-- name: messages_all
-- why: the whole log, the oldest first.
-- index: log_pkey
SELECT message_id, (extract(epoch FROM ts) * 1000000)::bigint AS ts_us, reply_to, sender, recipient, conversation,
       body::text AS body, raw, metadata::text AS metadata, metadata_raw, bytes,
       (SELECT (extract(epoch FROM h.dropped) * 1000000)::bigint FROM {messages}.horizon AS h) AS dropped_us
  FROM (
    SELECT l.*, sum(l.bytes) OVER (ORDER BY l.ts ROWS UNBOUNDED PRECEDING) - l.bytes AS bytes_before
      FROM (
        SELECT * FROM {messages}.log
         WHERE ts > timestamptz 'epoch' + $1::bigint * interval '1 microsecond'
           AND ($4::text IS NULL OR conversation = $4) AND ($5::text IS NULL OR recipient = $5)
           AND ($6::text IS NULL OR sender = $6)
         ORDER BY ts
         LIMIT $2
      ) AS l
  ) AS sized
 WHERE bytes_before < $3
 ORDER BY ts

-- name: messages_all_back
-- why: the whole log, the newest first.
-- index: log_pkey
SELECT message_id, (extract(epoch FROM ts) * 1000000)::bigint AS ts_us, reply_to, sender, recipient, conversation,
       body::text AS body, raw, metadata::text AS metadata, metadata_raw, bytes,
       (SELECT (extract(epoch FROM h.dropped) * 1000000)::bigint FROM {messages}.horizon AS h) AS dropped_us
  FROM (
    SELECT l.*, sum(l.bytes) OVER (ORDER BY l.ts DESC ROWS UNBOUNDED PRECEDING) - l.bytes AS bytes_before
      FROM (
        SELECT * FROM {messages}.log
         WHERE ts < timestamptz 'epoch' + $1::bigint * interval '1 microsecond'
           AND ($4::text IS NULL OR conversation = $4) AND ($5::text IS NULL OR recipient = $5)
           AND ($6::text IS NULL OR sender = $6)
         ORDER BY ts DESC
         LIMIT $2
      ) AS l
  ) AS sized
 WHERE bytes_before < $3
 ORDER BY ts DESC

-- name: messages_of_conversation
-- why: what was said in one conversation, the oldest first.
-- index: log_conversation
SELECT message_id, (extract(epoch FROM ts) * 1000000)::bigint AS ts_us, reply_to, sender, recipient, conversation,
       body::text AS body, raw, metadata::text AS metadata, metadata_raw, bytes,
       (SELECT (extract(epoch FROM h.dropped) * 1000000)::bigint FROM {messages}.horizon AS h) AS dropped_us
  FROM (
    SELECT l.*, sum(l.bytes) OVER (ORDER BY l.ts ROWS UNBOUNDED PRECEDING) - l.bytes AS bytes_before
      FROM (
        SELECT * FROM {messages}.log
         WHERE conversation = $4 AND ts > timestamptz 'epoch' + $1::bigint * interval '1 microsecond'
           AND ($4::text IS NULL OR conversation = $4) AND ($5::text IS NULL OR recipient = $5)
           AND ($6::text IS NULL OR sender = $6)
         ORDER BY ts
         LIMIT $2
      ) AS l
  ) AS sized
 WHERE bytes_before < $3
 ORDER BY ts

-- name: messages_of_conversation_back
-- why: what was said in one conversation, the newest first.
-- index: log_conversation
SELECT message_id, (extract(epoch FROM ts) * 1000000)::bigint AS ts_us, reply_to, sender, recipient, conversation,
       body::text AS body, raw, metadata::text AS metadata, metadata_raw, bytes,
       (SELECT (extract(epoch FROM h.dropped) * 1000000)::bigint FROM {messages}.horizon AS h) AS dropped_us
  FROM (
    SELECT l.*, sum(l.bytes) OVER (ORDER BY l.ts DESC ROWS UNBOUNDED PRECEDING) - l.bytes AS bytes_before
      FROM (
        SELECT * FROM {messages}.log
         WHERE conversation = $4 AND ts < timestamptz 'epoch' + $1::bigint * interval '1 microsecond'
           AND ($4::text IS NULL OR conversation = $4) AND ($5::text IS NULL OR recipient = $5)
           AND ($6::text IS NULL OR sender = $6)
         ORDER BY ts DESC
         LIMIT $2
      ) AS l
  ) AS sized
 WHERE bytes_before < $3
 ORDER BY ts DESC

-- name: messages_to_recipient
-- why: what one agent was told, the oldest first.
-- index: log_recipient
SELECT message_id, (extract(epoch FROM ts) * 1000000)::bigint AS ts_us, reply_to, sender, recipient, conversation,
       body::text AS body, raw, metadata::text AS metadata, metadata_raw, bytes,
       (SELECT (extract(epoch FROM h.dropped) * 1000000)::bigint FROM {messages}.horizon AS h) AS dropped_us
  FROM (
    SELECT l.*, sum(l.bytes) OVER (ORDER BY l.ts ROWS UNBOUNDED PRECEDING) - l.bytes AS bytes_before
      FROM (
        SELECT * FROM {messages}.log
         WHERE recipient = $5 AND ts > timestamptz 'epoch' + $1::bigint * interval '1 microsecond'
           AND ($4::text IS NULL OR conversation = $4) AND ($5::text IS NULL OR recipient = $5)
           AND ($6::text IS NULL OR sender = $6)
         ORDER BY ts
         LIMIT $2
      ) AS l
  ) AS sized
 WHERE bytes_before < $3
 ORDER BY ts

-- name: messages_to_recipient_back
-- why: what one agent was told, the newest first.
-- index: log_recipient
SELECT message_id, (extract(epoch FROM ts) * 1000000)::bigint AS ts_us, reply_to, sender, recipient, conversation,
       body::text AS body, raw, metadata::text AS metadata, metadata_raw, bytes,
       (SELECT (extract(epoch FROM h.dropped) * 1000000)::bigint FROM {messages}.horizon AS h) AS dropped_us
  FROM (
    SELECT l.*, sum(l.bytes) OVER (ORDER BY l.ts DESC ROWS UNBOUNDED PRECEDING) - l.bytes AS bytes_before
      FROM (
        SELECT * FROM {messages}.log
         WHERE recipient = $5 AND ts < timestamptz 'epoch' + $1::bigint * interval '1 microsecond'
           AND ($4::text IS NULL OR conversation = $4) AND ($5::text IS NULL OR recipient = $5)
           AND ($6::text IS NULL OR sender = $6)
         ORDER BY ts DESC
         LIMIT $2
      ) AS l
  ) AS sized
 WHERE bytes_before < $3
 ORDER BY ts DESC

-- name: messages_from_sender
-- why: what one agent said, the oldest first.
-- index: log_sender
SELECT message_id, (extract(epoch FROM ts) * 1000000)::bigint AS ts_us, reply_to, sender, recipient, conversation,
       body::text AS body, raw, metadata::text AS metadata, metadata_raw, bytes,
       (SELECT (extract(epoch FROM h.dropped) * 1000000)::bigint FROM {messages}.horizon AS h) AS dropped_us
  FROM (
    SELECT l.*, sum(l.bytes) OVER (ORDER BY l.ts ROWS UNBOUNDED PRECEDING) - l.bytes AS bytes_before
      FROM (
        SELECT * FROM {messages}.log
         WHERE sender = $6 AND ts > timestamptz 'epoch' + $1::bigint * interval '1 microsecond'
           AND ($4::text IS NULL OR conversation = $4) AND ($5::text IS NULL OR recipient = $5)
           AND ($6::text IS NULL OR sender = $6)
         ORDER BY ts
         LIMIT $2
      ) AS l
  ) AS sized
 WHERE bytes_before < $3
 ORDER BY ts

-- name: messages_from_sender_back
-- why: what one agent said, the newest first.
-- index: log_sender
SELECT message_id, (extract(epoch FROM ts) * 1000000)::bigint AS ts_us, reply_to, sender, recipient, conversation,
       body::text AS body, raw, metadata::text AS metadata, metadata_raw, bytes,
       (SELECT (extract(epoch FROM h.dropped) * 1000000)::bigint FROM {messages}.horizon AS h) AS dropped_us
  FROM (
    SELECT l.*, sum(l.bytes) OVER (ORDER BY l.ts DESC ROWS UNBOUNDED PRECEDING) - l.bytes AS bytes_before
      FROM (
        SELECT * FROM {messages}.log
         WHERE sender = $6 AND ts < timestamptz 'epoch' + $1::bigint * interval '1 microsecond'
           AND ($4::text IS NULL OR conversation = $4) AND ($5::text IS NULL OR recipient = $5)
           AND ($6::text IS NULL OR sender = $6)
         ORDER BY ts DESC
         LIMIT $2
      ) AS l
  ) AS sized
 WHERE bytes_before < $3
 ORDER BY ts DESC

-- name: messages_by_id
-- why: what was sent under these ids; each partition is asked.
-- index: log_default_message_id_idx
SELECT message_id, (extract(epoch FROM ts) * 1000000)::bigint AS ts_us, reply_to, sender, recipient, conversation,
       body::text AS body, raw, metadata::text AS metadata, metadata_raw, bytes,
       (SELECT (extract(epoch FROM h.dropped) * 1000000)::bigint FROM {messages}.horizon AS h) AS dropped_us
  FROM {messages}.log
 WHERE message_id = ANY ($1::uuid[])

-- name: send_messages
-- why: one turn of one sender, in one statement, hence one commit; the function says how places are given.
-- index: log_default_message_id_idx
SELECT sent_id, sent_us FROM {messages}.send($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)

-- name: message_partitions
-- why: which times have a partition, and what lies in the net.
-- index: pg_inherits_parent_index
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us,
       (SELECT last_value FROM {messages}.position) AS position_us,
       (SELECT (extract(epoch FROM min(d.ts)) * 1000000)::bigint FROM {messages}.log_default AS d) AS net_us,
       ARRAY(SELECT (extract(epoch FROM p.since) * 1000000)::bigint
               FROM {messages}.partitions AS p ORDER BY p.since) AS since_us,
       ARRAY(SELECT (extract(epoch FROM p.until) * 1000000)::bigint
               FROM {messages}.partitions AS p ORDER BY p.since) AS until_us

-- name: make_message_partition
-- why: under `lock_maker`, in READ COMMITTED.
-- index: pg_inherits_parent_index
SELECT (extract(epoch FROM {messages}.make_partition(
         timestamptz 'epoch' + $1::bigint * interval '1 microsecond', $2, $3)) * 1000000)::bigint

-- name: drop_message_partitions
-- why: retention; a whole partition goes at once, and gives its disk back.
-- index: pg_inherits_parent_index
SELECT {messages}.drop_partitions(clock_timestamp() - $1::double precision * interval '1 second')

-- name: lock_maker
-- why: partitions are made and dropped by one at a time: whoever waited finds it done.
-- index: none
SELECT pg_advisory_xact_lock($1)

-- name: messages_horizon
-- why: what lies up to there was dropped for its age: nobody resumes before it without being told.
-- index: horizon_pkey
SELECT (extract(epoch FROM dropped) * 1000000)::bigint FROM {messages}.horizon

-- name: newest_message
-- why: where a feed begins that begins now.
-- index: log_pkey
SELECT coalesce((extract(epoch FROM max(ts)) * 1000000)::bigint, 0) FROM {messages}.log

-- name: forget_conversation
-- why: so many at a time: each is a statement of its own, within its time.
-- index: log_conversation
DELETE FROM {messages}.log
 WHERE (ts, message_id) IN (SELECT ts, message_id FROM {messages}.log WHERE conversation = $1 ORDER BY ts LIMIT $2)

-- name: delete_message
-- why: one message; each partition is asked.
-- index: log_default_message_id_idx
DELETE FROM {messages}.log WHERE message_id = $1

-- name: search_messages
-- why: words anywhere in the texts of a body, in PostgreSQL's web search syntax, the newest first. For partitions that
-- why: have an index on them.
-- index: log_pkey
SELECT message_id, (extract(epoch FROM ts) * 1000000)::bigint AS ts_us, reply_to, sender, recipient, conversation,
       body::text AS body, raw, metadata::text AS metadata, metadata_raw, bytes,
       (SELECT (extract(epoch FROM h.dropped) * 1000000)::bigint FROM {messages}.horizon AS h) AS dropped_us
    FROM {messages}.log
 WHERE jsonb_to_tsvector('simple', body, '["string"]') @@ websearch_to_tsquery('simple', $3)
   AND ts < timestamptz 'epoch' + $1::bigint * interval '1 microsecond'
   AND ($4::text IS NULL OR conversation = $4) AND ($5::text IS NULL OR recipient = $5)
   AND ($6::text IS NULL OR sender = $6)
 ORDER BY ts DESC
 LIMIT $2

-- name: search_messages_slice
-- why: the same without an index: the newest $7 messages before $1 are read; `seen_us` is the oldest of them, NULL when
-- why: there were none before it.
-- index: log_pkey
WITH looked AS MATERIALIZED (
  SELECT * FROM {messages}.log
   WHERE ts < timestamptz 'epoch' + $1::bigint * interval '1 microsecond'
     AND ($4::text IS NULL OR conversation = $4) AND ($5::text IS NULL OR recipient = $5)
     AND ($6::text IS NULL OR sender = $6)
   ORDER BY ts DESC
   LIMIT $7
)
SELECT f.*, (SELECT CASE WHEN count(*) = $7 THEN (extract(epoch FROM min(ts)) * 1000000)::bigint END
               FROM looked) AS seen_us
  FROM (SELECT) AS always LEFT JOIN (
    SELECT message_id, (extract(epoch FROM ts) * 1000000)::bigint AS ts_us, reply_to, sender, recipient, conversation,
           body::text AS body, raw, metadata::text AS metadata, metadata_raw, bytes,
           (SELECT (extract(epoch FROM h.dropped) * 1000000)::bigint FROM {messages}.horizon AS h) AS dropped_us
      FROM looked
     WHERE jsonb_to_tsvector('simple', body, '["string"]') @@ websearch_to_tsquery('simple', $3)
     ORDER BY ts DESC
     LIMIT $2
  ) AS f ON true
 ORDER BY f.ts_us DESC
