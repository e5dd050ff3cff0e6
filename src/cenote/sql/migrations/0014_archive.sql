-- phase: pre
-- min_reader: 14
-- Finished tasks leave the queue, so that it stays as small as what is to be done. Whoever does not know where they went
-- would take their ids for free ones: hence min_reader.

-- The same columns in the same order: rows go over as they are, and come back when they are replayed.
CREATE TABLE {tasks}.archive (LIKE {tasks}.queue, PRIMARY KEY (task_id))
  WITH (autovacuum_vacuum_insert_scale_factor = 0.2);
CREATE INDEX archive_finished ON {tasks}.archive (finished_at);
COMMENT ON TABLE {tasks}.archive IS 'Tasks that are finished, until their retention is over';
COMMENT ON TABLE {tasks}.queue IS 'Tasks, the finished ones for about a minute';

CREATE VIEW {tasks}.everything AS SELECT * FROM {tasks}.queue UNION ALL SELECT * FROM {tasks}.archive;
COMMENT ON VIEW {tasks}.everything IS 'Each task once, wherever it is just now';
