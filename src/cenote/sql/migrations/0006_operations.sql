-- phase: pre
-- min_reader: 3
-- Which transactions of users were committed: an answer to COMMIT can be lost, a row cannot. A transaction leaves its
-- own row; whoever lost the answer puts a row under the same id that says it did not happen, and only one of the two
-- can stand.

CREATE TABLE {agents}.operations (
  operation_id uuid        PRIMARY KEY,
  committed    boolean     NOT NULL,
  at           timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE {agents}.operations IS 'Transactions of a day, so that a lost answer to COMMIT need not stay unknown';
