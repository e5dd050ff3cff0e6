"""Every limit of cenote in one place, one sentence each, with the relations between them asserted.

Settings a user may change live in `config.py`; what stands here is fixed by a protocol, by a server, or by an
argument that the comment gives.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- keys and identities -------------------------------------------------------------------------------------
AGENT_CHARS_MAX: Final = 200  # longest agent name, in characters
KEY_CHARS_MAX: Final = 512  # longest key, in characters
SUBJECT_BYTES_MAX: Final = 1024  # longest encoded subject; the server's control line ends at 4,096 bytes
SQL_KEY_BYTES_MAX: Final = 2000  # a btree row ends at 2,704 bytes (PostgreSQL); the encoded key stays below
NAMESPACE_CHARS_MAX: Final = 32  # longest namespace; it prefixes schema names, which end at 63 bytes

# --- filters -------------------------------------------------------------------------------------------------
FILTER_DEPTH_MAX: Final = 20  # deepest nesting of a filter, and longest path
FILTER_TESTS_MAX: Final = 200  # operators of one filter, and values of one `in`: a statement must stay plannable
FILTER_OPERAND_BYTES_MAX: Final = 64 * KIB  # largest value to compare with, as JSON

# --- values --------------------------------------------------------------------------------------------------
VALUE_DEPTH_MAX: Final = 200  # deepest nesting; jsonb's parser gives up between 5,000 and 20,000
INT_DIGITS_MAX: Final = 4_000  # longest integer; CPython refuses to parse more than 4,300 digits
COMPRESS_BYTES_MIN: Final = 32 * KIB  # smaller bodies are stored plain
INLINE_BYTES_MAX: Final = 512 * KIB  # largest body inside one KV entry, after compression
VALUE_BYTES_MAX: Final = 64 * MIB  # largest encoded value, before compression
JSONB_BYTES_MAX: Final = 16 * MIB  # larger ones are in SQL as bytes only; jsonb ends at 256 MiB, 6 for 1 of `0,0,`
PAYLOAD_BYTES_MAX: Final = MIB  # nats-server's default max_payload, headers included
ACTOR_CHARS_MAX: Final = 200  # longest name of an actor in a clock or a merging value: an agent's may be one
ACTOR_PLACES_MAX: Final = 16_384  # keys for which one process remembers its name in the merging value there
CLOCK_ACTORS_MAX: Final = 1_024  # actors of one vector clock
MERGING_ACTORS_MAX: Final = 8_192  # actors of one merging value: one for each process that ever changed it
CLOCK_NUMBER_MAX: Final = 2**53 - 1  # largest number in a clock: what every reader of JSON holds exactly
TTL_S_MAX: Final = 100 * 365 * 86_400  # longest per-entry time to live: a century

# --- agents --------------------------------------------------------------------------------------------------
AGENT_WORD_CHARS_MAX: Final = 100  # longest type or status of an agent
AGENT_METADATA_BYTES_MAX: Final = 64 * KIB  # what an agent says of itself, encoded: each search may read all of it
HEARTBEAT_MS_MIN: Final = 1_000  # a process sends one heartbeat of an agent in this time, however often it is told to
HEARTBEAT_AGENTS_MAX: Final = 100_000  # of which one process remembers when it sent the last one
SEARCH_MS_MAX: Final = 8_000  # a content search without an index reads all there is, and is given up after this
SEARCH_FEED_COMMITS: Final = 20  # commits that the projection follows in one transaction
SEARCH_FILL_ROWS: Final = 1_000  # rows that fill it, or leave it, in one transaction
SEARCH_DROP_S: Final = 60  # an index is dropped once who flushes has not wanted it for so long

# --- time ----------------------------------------------------------------------------------------------------
CLOCK_DRIFT_MS_MAX: Final = 60_000  # a hybrid clock that is further ahead of ours is refused, not followed
EVICT_AGE_MIN_MS: Final = 2_000
"""No eviction removes an entry younger than this, and a clean copy whose hydration took as long is not
believed (flow rule 7). One constant for all processes: were it a setting, two processes could disagree."""
CLUSTER_SKEW_MS_MAX: Final = 1_000
"""How far the clocks of a cluster's servers may be apart: one learns a time from one of them, a message bears that of
the stream's leader. Evictions wait, and receipts look back, for that much longer where there are replicas."""
PROBE_INTERVAL_MS: Final = 1_000  # each process with an L1 compares its feed with the leader's end (rule 10)
PROBE_CALM_MS: Final = 5_000  # a process that only writes looks so often, while KV is far from full
SILENCE_MS_MAX: Final = 3_000  # without an answer for so long, L1 is no longer coherent (rule 10)
PURGE_FACTS_AGE_MS_MAX: Final = 1_000  # an eviction uses no fact older than this (rule 2)
LEASE_RENEW_MS: Final = 400  # the active flusher renews its lease so often …
LEASE_EXPIRE_MS: Final = 1_500  # … and another takes over when it saw no renewal for this long
ACK_WAIT_S: Final = 5  # the server redelivers an unacked entry after this (rule 18)
ACK_PROGRESS_MS: Final = 1_000  # a flusher that still holds entries says so this often (rule 18)
UNKNOWN_FORMAT_DELAY_S: Final = 30  # an entry of an unknown format is offered again after this (rule 22)
PRUNE_LOOKS: Final = 25  # each so many looks at PostgreSQL, 10 s, the oldest commits of the change feed are …
PRUNE_COMMITS_MAX: Final = 2_000  # … removed, so many at a time: more than a flusher can make in that time
COUNTER_WINDOW_S: Final = 30  # the server remembers so long which increments it has counted …
COUNTER_DOUBT_S: Final = 20  # … and nothing is concluded from that later than this after the first attempt
COUNTER_LOOK_MS: Final = 250  # the active flusher looks so often for new totals …
COUNTER_LOOK_CALM_MS: Final = 1_000  # … or so often, when there were none
COUNTERS_PAGE: Final = 1_000  # totals of one flush
SWEEP_S_MAX: Final = 300  # so often at least the active flusher looks for what may leave SQL (rules 12, 20, 21)
BLOB_UNREFERENCED_S: Final = 86_400  # a blob that nothing refers to leaves SQL after a day (rule 20)
FLUSHER_FORGOTTEN_S: Final = 86_400  # a flusher that committed nothing for a day is not told of any more
LIFE_LEASE_MS: Final = 5_000  # who works on an agent as a whole is believed dead after this silence …
LIFE_RENEW_MS: Final = 1_000  # … and says so often that he is not
LIFE_PAGE_AGENTS: Final = 500  # agents of one look for those that have expired, and of one warm-up at a time
WARM_UP_AT_ONCE_MAX: Final = 256  # agents that one warm-up brings in side by side
LIFE_EVENTS_S: Final = 30 * 86_400  # events of agents' lives are kept so long
REWIND_GAP: Final = 1_000_000  # after an unclean stop an embedded stream skips so many sequences

# --- queues and batches --------------------------------------------------------------------------------------
MULTI_GET_SUBJECTS_MAX: Final = 1_024  # nats-server answers 413 above it
PUT_MANY_WINDOW: Final = 1_000  # writes of one put_many in flight at a time
ATOMIC_KEYS_MAX: Final = 1_000  # members of one atomic batch: nats-server answers 10199 above it
ATOMIC_OPEN_MAX: Final = 4  # of one process at a time: the server holds 50 for a stream, and drops them after 10 s
ATOMIC_WINDOW_BYTES: Final = 4 * MIB  # members of a batch on their way to the server before it is asked to go on
FLUSH_BYTES_MAX: Final = 8 * MIB  # text of one flush statement, and the largest value on top of it
HYDRATE_WINDOW_BYTES: Final = 4 * MIB  # clean copies on their way to KV at a time
FOREIGN_FLUSHER_S: Final = 10  # who committed so lately may be alive: nothing is adopted (flow rule 8)
HYDRATE_PAGE_KEYS: Final = 1_000  # keys of one hydration page
PAGE_BYTES_MAX: Final = 32 * MIB  # text of one page of rows: its last row may exceed it
BLOB_WRITES_MAX: Final = 2  # large values on their way to PostgreSQL at a time, for each is in memory twice
LIST_PAGE_KEYS: Final = 1_000  # keys of one listing page
CHANGES_PAGE_COMMITS: Final = 100  # commits of one page of the change feed, each of at most a flush's keys
SCAN_PAGE_KEYS: Final = 10_000  # entries of one page of a stream scan; for each the server counts what is left
PULL_BYTES_MAX: Final = 16 * MIB  # bytes of undelivered entries one flusher asks for at a time
WATCH_QUEUE_MAX: Final = 65_536  # events a slow watcher may fall behind before it resynchronises
SUBJECT_CACHE_KEYS_MAX: Final = 4_096  # encoded keys one agent handle remembers
IN_FLIGHT_MAX: Final = 65_536  # requests one process may have in flight
WRITE_BUFFER_BYTES_MAX: Final = 32 * MIB  # bytes that wait for NATS's socket before requests are refused
REQUEST_SUBJECT_BYTES_MAX: Final = SUBJECT_BYTES_MAX + 128  # an entry's subject behind a JetStream API prefix

# --- looking at the distance between the tiers ---------------------------------------------------------------
LEASE_MISSED_MS: Final = 800  # a board that was not renewed for so long, which is twice, is not believed
DIRTY_SCAN_ENTRIES: Final = 50_000  # entries that one look for unflushed keys reads at most
DIRTY_COUNT_MAX: Final = 10_000  # … and keys or agents that it tells of at most
DIRTY_PAGE_ENTRIES: Final = 1_000  # … which are compared with SQL in one question
NEAR_PERCENT: Final = 80  # of the backlog's bound, or of KV's bytes: who waits for SQL then is no longer ready
FREE_BYTES_MIN: Final = 1024 * MIB  # below it the disk of embedded servers is nearly full
POOL_WAIT_MS: Final = 1_000  # who waits so long for a connection shows that the pool is too small
LETTERS_COUNTED_MAX: Final = 1_000  # dead letters are counted up to here

# --- messages -----------------------------------------------------------------------------------------------
MESSAGE_BYTES_MAX: Final = MIB  # largest body of a message, encoded: what is larger goes under a key
MESSAGE_METADATA_BYTES_MAX: Final = 64 * KIB  # largest metadata of a message, encoded
MESSAGES_BATCH_COUNT_MAX: Final = 1_000  # messages of one send_many, and of one statement
MESSAGES_BATCH_BYTES_MAX: Final = 8 * MIB  # their bytes: all other senders of the store wait for the statement
MESSAGES_WAITING_BYTES_MAX: Final = 64 * MIB  # messages of one process that wait to be sent
MESSAGES_PAGE_BYTES_MAX: Final = 8 * MIB  # messages of one page, the last of which may exceed it
MESSAGES_SLICE_ROWS: Final = 5_000  # messages that one statement of a search without an index reads
MESSAGES_FORGET_ROWS: Final = 5_000  # messages that one statement of a forget removes
MESSAGE_WORDS_CHARS_MAX: Final = 1_000  # longest text to search for

# --- tasks ---------------------------------------------------------------------------------------------------
TASK_TYPE_CHARS_MAX: Final = 50  # longest type of a task
TASK_DEDUPE_CHARS_MAX: Final = 200  # longest dedupe key
TASK_WORKER_CHARS_MAX: Final = 200  # longest name of a worker
TASK_ERROR_CHARS_MAX: Final = 2_000  # what is kept of an error
TASK_BYTES_MAX: Final = MIB  # largest payload or result of a task, encoded: what is larger goes under a key
TASK_METADATA_BYTES_MAX: Final = 64 * KIB  # largest metadata of a task, encoded
TASK_ATTEMPTS_MAX: Final = 1_000  # most runs of a task
TASK_TYPES_MAX: Final = 100  # types that one worker asks for
TASK_LEASE_MS_MIN: Final = 100  # shortest lease: a heartbeat comes three times within
TASK_PAST_S_MAX: Final = 60  # a `run_at` that is past for longer is refused: clocks differ by less
TASKS_BATCH_COUNT_MAX: Final = 10_000  # tasks of one add_many, and of one statement
TASKS_BATCH_BYTES_MAX: Final = 8 * MIB  # their bytes
TASKS_UPKEEP_ROWS: Final = 2_000  # tasks that one statement expires, archives, or removes after their retention
TASKS_ARCHIVE_AFTER_S: Final = 60  # finished tasks stay in the queue so long; half as old may be who adds under an id

# --- checkpoints ---------------------------------------------------------------------------------------------
CHECKPOINT_PART_BYTES: Final = 512 * KIB  # of bodies and keys in one part, which one record may exceed
CHECKPOINT_SPILL_BYTES: Final = 4 * MIB  # parts beyond this wait in PostgreSQL, not in memory, for their checkpoint
CHECKPOINT_READ_BYTES: Final = 4 * MIB  # parts that are read in one question
CHECKPOINT_DELTAS_MAX: Final = 32  # deltas over one base: then the newest becomes a base itself …
CHECKPOINT_DELTAS_SHARE: Final = 2  # … as it does when they take a half of the base's bytes
CHECKPOINT_TAIL_MS_MAX: Final = EVICT_AGE_MIN_MS // 2  # between two looks at the end of the stream while a cut is made
CHECKPOINT_TAIL_MS: Final = 250  # … which are made so often while pages are read
CHECKPOINT_ROWS_PAGE: Final = 2_000  # versions that one question of a cut asks SQL for
CHECKPOINT_LABEL_CHARS_MAX: Final = 200  # longest label
CHECKPOINT_METADATA_BYTES_MAX: Final = 64 * KIB  # largest metadata of a checkpoint, encoded
RESTORE_BATCH_BYTES: Final = 16 * MIB  # bodies of one atomic batch of a restore
RESTORE_SIDE_BY_SIDE: Final = 64  # keys that a restore reads, or writes without batches, at a time
RESTORE_SILENT_S: Final = 30  # nobody works on a restore for so long: whoever flushes finishes it
POLICY_COMMITS: Final = 1_000  # commits of flushes that one statement counts for the checkpoints of the settings …
POLICY_PAGES: Final = 20  # … and so many such statements at a time, …
POLICY_CHECKPOINTS: Final = 200  # … after which so many checkpoints are made
POLICY_CLAIM_S: Final = 60  # whoever makes one has so long: then it is made again
CHECKPOINT_ORPHAN_S: Final = 86_400  # parts without a checkpoint were left by a process that died: removed after this

# --- embedded servers ---------------------------------------------------------------------------------------
SERVER_START_S: Final = 120  # a server that recovers from a crash may take this long until it answers
SERVER_ATTACH_S: Final = 15  # a server that runs but does not answer within this is stopped and started again
SERVER_RESTART_S: Final = 15  # the backends of a killed PostgreSQL hold its shared memory no longer than this
SERVER_STOP_S: Final = 30  # after this without an end the next stronger signal is sent
SERVER_WATCH_MS: Final = 250  # each user of embedded servers looks so often whether they live …
SERVER_WATCH_TOLD_MS: Final = 10_000  # … or so often, where the kernel tells of their end
SERVER_STABLE_S: Final = 60  # a server that lived this long is restarted at once when it dies …
SERVER_RESTART_DELAY_MS_MIN: Final = 100  # … else after a delay that doubles from here …
SERVER_RESTART_DELAY_MS_MAX: Final = 30_000  # … to here
SERVER_LOG_BYTES_MAX: Final = 10 * MIB  # a longer log is put aside at the next start, one old one is kept
EMBEDDED_PORT_MIN: Final = 20_000  # below the ports that Linux (32,768) and macOS (49,152) give to clients
EMBEDDED_PORT_MAX: Final = 31_999

assert MESSAGE_BYTES_MAX + MESSAGE_METADATA_BYTES_MAX < MESSAGES_BATCH_BYTES_MAX < MESSAGES_WAITING_BYTES_MAX
assert CHECKPOINT_TAIL_MS < CHECKPOINT_TAIL_MS_MAX < EVICT_AGE_MIN_MS
assert EVICT_AGE_MIN_MS > PURGE_FACTS_AGE_MS_MAX
assert LEASE_RENEW_MS * 3 <= LEASE_EXPIRE_MS
assert LEASE_RENEW_MS * 2 <= LEASE_MISSED_MS < LEASE_EXPIRE_MS
assert LIFE_RENEW_MS * 3 <= LIFE_LEASE_MS
assert ACK_PROGRESS_MS * 3 <= ACK_WAIT_S * 1000
assert PROBE_INTERVAL_MS * 3 <= SILENCE_MS_MAX
assert INLINE_BYTES_MAX + 8 * KIB < PAYLOAD_BYTES_MAX
assert KEY_CHARS_MAX < SUBJECT_BYTES_MAX < 4_096
# A character outside Unicode's scalar values takes 9 bytes of the subject and 5 of the SQL key, NUL 3 and 5.
assert SUBJECT_BYTES_MAX * 5 // 3 < SQL_KEY_BYTES_MAX
assert ATOMIC_KEYS_MAX <= MULTI_GET_SUBJECTS_MAX  # what is written together can be read together
assert ATOMIC_WINDOW_BYTES + PAYLOAD_BYTES_MAX < WRITE_BUFFER_BYTES_MAX
assert COUNTER_DOUBT_S < COUNTER_WINDOW_S
assert EMBEDDED_PORT_MIN < EMBEDDED_PORT_MAX < 32_768

DASHBOARD_DEPTH: Final = 20  # how deep a value is shown
REPAIR_PAGE_KEYS: Final = 500  # entries that a repair compares at a time
REPAIR_PAGE_BYTES: Final = 4 * MIB  # their values, as KV holds them
REPAIR_LATE_EVERY_S: Final = 60  # whose writes were late is compared so often at most
REPAIR_SILENT_S: Final = 10  # a repair of which nothing was heard for so long is gone on with by the next
REPAIR_KEPT_S: Final = 86_400  # repairs that found nothing are listed for so long
REPAIR_FINDINGS_KEPT_S: Final = 30 * 86_400  # those that found something

# --- knowledge -----------------------------------------------------------------------------------------------
FACT_TEXT_BYTES_MAX: Final = 256 * KIB  # longest text of a fact: PostgreSQL keeps its words in one value
FACT_METADATA_BYTES_MAX: Final = 64 * KIB  # largest metadata of a fact, encoded
FACT_DIMENSIONS_MAX: Final = 4_096  # most numbers of an embedding
FACTS_BATCH_COUNT_MAX: Final = 10_000  # facts of one add_many
FACTS_BATCH_BYTES_MAX: Final = 32 * MIB  # their bytes, embeddings included
FACTS_EMBED_COUNT: Final = 128  # facts that an embedder gets at a time
FACTS_EMBED_S: Final = 30  # time for that, after which another process may take them
FACTS_IDLE_S: Final = 5  # an idle process with an embedder looks this often for facts of others
FACTS_VECTORS_BYTES_MAX: Final = 256 * MIB  # embeddings that one process keeps in memory
FACTS_INDEX_COUNT: Final = 200  # embeddings that go into an index at a time
FACTS_SPACES_MAX: Final = 10_000  # namespaces of which a process remembers whether they have an index
FACT_WORDS_CHARS_MAX: Final = 4_000  # longest text to search for
ANSWERS_SHARE: Final = 4  # answers may take a quarter of the memory that the state's L1 may
