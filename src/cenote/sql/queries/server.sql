-- Questions to the server itself; no tables of ours.

-- name: identity
-- why: flow rule 5. A data directory can be put back, and a server be replaced, only by a start: its time is part of
-- why: the answer, although an ordinary restart loses nothing, for what it costs to be wrong. On a primary the timeline is that of the WAL being written, which a promotion changes at once;
-- why: pg_control_checkpoint() would show it only after the next checkpoint.
-- index: none
SELECT pg_is_in_recovery() AS in_recovery,
       (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int
        END AS timeline,
       (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started_us
