-- phase: pre
-- min_reader: 3
-- What may leave SQL again: tombstones, expired rows and blobs (flow rules 12, 20, 21).

-- The floor stands on the very row that each flush locks FOR SHARE and reads again after a wait: so a flush that waited
-- for a collection knows the new floor, whatever else its snapshot is too old for. `gc_round` counts collections, for
-- one of older tombstones leaves the floor where it was.
ALTER TABLE {agents}.epochs
  ADD COLUMN gc_epoch   bigint NOT NULL DEFAULT 0,
  ADD COLUMN gc_version bigint NOT NULL DEFAULT 0,
  ADD COLUMN gc_round   bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN {agents}.epochs.gc_version IS 'With gc_epoch: no flush inserts a row up to here without a look at KV';

-- However an epoch begins, it begins with the floor of the one before it.
CREATE FUNCTION {agents}.carry_gc_floor() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  SELECT e.gc_epoch, e.gc_version, e.gc_round INTO NEW.gc_epoch, NEW.gc_version, NEW.gc_round
    FROM {agents}.epochs AS e ORDER BY e.epoch DESC LIMIT 1;
  NEW.gc_epoch := coalesce(NEW.gc_epoch, 0);
  NEW.gc_version := coalesce(NEW.gc_version, 0);
  NEW.gc_round := coalesce(NEW.gc_round, 0);
  RETURN NEW;
END $$;
CREATE TRIGGER carry_gc_floor BEFORE INSERT ON {agents}.epochs
  FOR EACH ROW EXECUTE FUNCTION {agents}.carry_gc_floor();

-- Both are empty for stores without deletes and expiries, and no column of theirs changes when a value is rewritten, so
-- such updates stay HOT.
CREATE INDEX state_tombstones ON {agents}.state (agent_id, key) WHERE deleted;
CREATE INDEX state_expiring ON {agents}.state (expires_at) WHERE expires_at IS NOT NULL AND NOT deleted;

-- Whose a blob is, so that one look at one row says whether it is still referred to. Older blobs without an owner stay.
ALTER TABLE {agents}.blobs
  ADD COLUMN agent_id        uuid,
  ADD COLUMN key             text COLLATE "C",
  ADD COLUMN unreferenced_at timestamptz;
COMMENT ON COLUMN {agents}.blobs.unreferenced_at IS 'Since when nothing is known to refer to it; a day later it is collected';
