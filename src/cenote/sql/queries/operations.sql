-- agents.operations.

-- name: leave_operation
-- why: the last statement before COMMIT; a transaction that wrote nothing has nothing to be known of.
-- index: operations_pkey
INSERT INTO {agents}.operations (operation_id, committed)
SELECT $1, true WHERE pg_current_xact_id_if_assigned() IS NOT NULL

-- name: forbid_operation
-- why: waits for a transaction that is still under way with this id; once this row stands, it can never be committed.
-- index: operations_pkey
INSERT INTO {agents}.operations (operation_id, committed) VALUES ($1, false)
ON CONFLICT (operation_id) DO NOTHING

-- name: operation_committed
-- why: after forbid_operation there is a row; whose it is says what happened.
-- index: operations_pkey
SELECT committed FROM {agents}.operations WHERE operation_id = $1

-- name: forget_operations
-- why: nobody asks after a day. Once an hour; the table is small.
-- index: none
DELETE FROM {agents}.operations WHERE at < now() - interval '1 day'
